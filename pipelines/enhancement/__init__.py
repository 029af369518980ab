"""Using a student: photographs enhanced, programs exported."""
