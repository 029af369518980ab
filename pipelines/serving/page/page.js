// The page of the service: a photograph, its result under a slider, and the settings that change it.
//
// Browsers cannot show every format, and large photographs take long. So the page asks for a reduced picture once
// (POST preview), has that enhanced at each change of a setting, and sends the file itself only for the download.

const at = (id) => document.getElementById(id);
const PAUSE_MS = 250;
const NAMES = { "image/jpeg": "jpg", "image/png": "png", "image/webp": "webp", "image/tiff": "tif", "image/bmp": "bmp" };

let file = null;      // the photograph as it was chosen
let preview = null;   // its reduced picture
let running = null;   // the request whose answer the page waits for
let timer = 0;

function say(text, isError = false) {
  at("message").textContent = text;
  at("message").classList.toggle("error", isError);
}

function show(image, blob) {
  URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(blob);
  return image.decode();
}

// Sends a file, in place of any request that still runs; returns the answer's blob, or throws its error.
async function send(path, body) {
  running?.abort();
  const own = (running = new AbortController());
  document.body.classList.add("busy");
  at("download").disabled = true;
  try {
    const token = sessionStorage.getItem("token");
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    const response = await fetch(path, { method: "POST", body, headers, signal: own.signal });
    if (response.ok) return await response.blob();
    if (response.status === 401) at("token-row").hidden = false;
    const answer = await response.json().catch(() => ({}));
    throw new Error(answer.error ?? `the service answers ${response.status}`);
  } finally {
    if (running === own) {
      running = null;
      document.body.classList.remove("busy");
      at("download").disabled = false;
    }
  }
}

// Runs a step of the page, and says what went wrong; a request that another one replaced is nothing to speak of.
async function attempt(step) {
  try {
    await step();
  } catch (error) {
    if (error.name === "AbortError") return;
    const reason = error instanceof TypeError ? "the service does not answer; is it running?" : error.message;
    say(`That did not work: ${reason}`, true);
  }
}

function settings(isDownload) {
  const query = new URLSearchParams({ steps: at("steps").value });
  if (!at("auto").checked) query.set("brightness", at("brightness").value);
  query.set("format", isDownload ? at("format").value : "png");
  return `enhance?${query}`;
}

async function choose(chosen) {
  file = chosen;
  preview = null;
  at("compare").hidden = at("settings").hidden = true;
  say("Reading the photograph …");
  preview = await send("preview", file);
  await show(at("before"), preview);
  await enhance();
}

async function enhance() {
  if (!preview) return;
  say("Enhancing …");
  const started = performance.now();
  const result = await send(settings(false), preview);
  await show(at("after"), result);
  at("compare").hidden = at("settings").hidden = false;
  say(`${file.name}: enhanced in ${((performance.now() - started) / 1000).toFixed(1)} s`);
}

async function download() {
  say("Enhancing at full size …");
  const result = await send(settings(true), file);
  const stem = file.name.replace(/\.[^.]*$/, "");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(result);
  link.download = `${stem}-enhanced.${NAMES[result.type] ?? result.type.split("/")[1] ?? "bin"}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  say(`Saved ${link.download}`);
}

function showBrightness() {
  at("brightness-value").value = at("auto").checked ? "" : Number(at("brightness").value).toFixed(2);
}

function changed() {
  showBrightness();
  clearTimeout(timer);
  timer = setTimeout(() => attempt(enhance), PAUSE_MS);
}

at("file").addEventListener("change", (event) => {
  const [chosen] = event.target.files;
  if (chosen) attempt(() => choose(chosen));
});
at("sample").addEventListener("click", () => attempt(async () => {
  const response = await fetch("page/sample.jpg");
  await choose(new File([await response.blob()], "sample.jpg"));
}));
for (const name of ["dragover", "dragleave", "drop"]) {
  document.body.addEventListener(name, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", name === "dragover");
    const [chosen] = name === "drop" ? event.dataTransfer.files : [];
    if (chosen) attempt(() => choose(chosen));
  });
}
document.addEventListener("paste", (event) => {
  const [chosen] = event.clipboardData.files;
  if (chosen) attempt(() => choose(chosen));
});
at("split").addEventListener("input", () => at("compare").style.setProperty("--split", `${at("split").value}%`));
at("brightness").addEventListener("input", () => {
  at("auto").checked = false;
  changed();
});
at("auto").addEventListener("change", changed);
at("steps").addEventListener("change", changed);
at("settings").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(download);
});
at("token-set").addEventListener("click", () => {
  sessionStorage.setItem("token", at("token").value);
  at("token-row").hidden = true;
  if (file) attempt(() => choose(file));
});

attempt(async () => {
  const offer = await (await fetch("settings")).json();
  at("limits").textContent = `up to ${offer.max_megapixels} megapixels and ${offer.max_megabytes} MB`;
  at("brightness").value = offer.brightness ?? 0.45;
  for (const steps of offer.steps_allowed) at("steps").add(new Option(steps, steps, false, steps === offer.steps));
  for (const format of offer.formats_written) at("format").add(new Option(format.toUpperCase(), format));
  at("token-row").hidden = !offer.needs_token || sessionStorage.getItem("token") !== null;
});
