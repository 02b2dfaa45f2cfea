"""The report of a run for a browser: one HTML file that holds all it shows and asks no network.

In: a run directory, finished or not. Out: `report.html`.

`content` turns the run's records into what the page shows (`page`: dataclasses, which become the JSON that the page's
scripts read), `overview` words the headline and the provenance, and `render` fills the template in `assets/`.
"""

from precision_search.display.html.write import REPORT_FILE, write_report

__all__ = ["REPORT_FILE", "write_report"]
