// Draws the plotly figures of a page; the library is fetched from this folder, and only where
// there are figures.
const figures = document.querySelectorAll("div.figure");
if (figures.length) {
  const library = document.createElement("script");
  library.src = new URL("plotly.min.js", document.currentScript.src).href;
  library.onload = () => {
    for (const place of figures) {
      const { data, layout } = JSON.parse(place.querySelector("script").textContent);
      const config = { displaylogo: false, responsive: true, showSendToCloud: false };
      Plotly.newPlot(place, data, layout, config);
    }
  };
  document.head.append(library);
}
