// Puts the page together, and draws the plots again where the browser turns dark or light.

function showPlots() {
  showPareto();
  showRanges();
  showProgress();
}

startTable();
startRanges();
startBlocks();
selection.listeners.push(showDetails, showBlocks, showPareto);
selection.clear();
showRanges();
showProgress();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showPlots);
addEventListener("scroll", () => tip.hide(), { passive: true, capture: true });
