"""Processes that the tests look for, to kill them or to know where something runs."""

import psutil


def started(word: str, below: int | None = None) -> list[psutil.Process]:
    """Those with a word in their command line that a process (this one, if none is named) started, also indirectly."""
    return [child for child in psutil.Process(below).children(recursive=True) if word in command_of(child)]


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""
