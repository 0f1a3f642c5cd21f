"""The report: what it shows (`data`), the figures (`charts`), and the page that puts them together (`page`)."""
