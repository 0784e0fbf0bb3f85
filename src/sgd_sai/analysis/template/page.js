const charts = JSON.parse(document.getElementById("charts").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function trace(line) {
  const own = line.colours ? line.colours[dark.matches ? 1 : 0] : colour("--soft");
  return {
    x: line.x,
    y: line.y,
    text: line.text ?? line.name,
    mode: line.mode ?? "lines",
    opacity: line.opacity ?? 1,
    line: { color: own, width: line.width ?? 1.25, dash: line.dash ?? "solid" },
    marker: { color: own, size: 7, symbol: line.symbol ?? "circle" },
    hovertemplate: line.silent ? undefined : "%{text}<br>%{y:.4g}<extra></extra>",
    hoverinfo: line.silent ? "skip" : undefined,
  };
}

function axis(given) {
  const style = { gridcolor: colour("--rule"), linecolor: colour("--rule"), zeroline: false, fixedrange: true };
  const log = given.log ? { type: "log", exponentformat: "power", dtick: given.dtick, nticks: 6 } : {};
  const title = given.title ? { text: given.title, standoff: 8 } : undefined;
  return { ...style, ...log, title, range: given.range, automargin: true };
}

function draw() {
  for (const chart of charts) {
    const layout = {
      xaxis: { ...axis(chart.x), showgrid: false, showline: true },
      yaxis: axis(chart.y),
      margin: { l: 8, r: 12, t: 10, b: 44 },
      font: { family: "system-ui, sans-serif", size: 12, color: colour("--soft") },
      hoverlabel: { bgcolor: colour("--panel"), font: { color: colour("--ink") }, align: "left" },
      hovermode: "closest",
      paper_bgcolor: "transparent",
      plot_bgcolor: "transparent",
      showlegend: false,
    };
    const place = document.getElementById(chart.id);
    Plotly.react(place, chart.lines.map(trace), layout, { displayModeBar: false, responsive: true });
  }
}

dark.addEventListener("change", draw);
draw();
