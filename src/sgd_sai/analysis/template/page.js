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

// Powers of ten over many decades, else 1, 2, 5.
function logTicks(values) {
  const known = values.filter((value) => value > 0);
  const [low, high] = [known.reduce((a, b) => Math.min(a, b)), known.reduce((a, b) => Math.max(a, b))];
  const decades = Math.log10(high / low);
  if (decades > 2) return { dtick: Math.ceil(decades / 5), exponentformat: "power" };
  const tickvals = [];
  for (let power = Math.floor(Math.log10(low)) - 1; power <= Math.log10(high) + 1; power++) {
    for (const digit of [1, 2, 5]) tickvals.push(Number(`${digit}e${power}`));
  }
  return { tickvals, ticktext: tickvals.map((value) => value.toPrecision(1).replace(/e\+(.*)/, (_, n) => "0".repeat(n))) };
}

function axis(given, values) {
  const style = { gridcolor: colour("--rule"), linecolor: colour("--rule"), zeroline: false, fixedrange: true };
  const log = given.log ? { type: "log", ...logTicks(given.range?.map((power) => 10 ** power) ?? values) } : {};
  const title = given.title ? { text: given.title, standoff: 8 } : undefined;
  return { ...style, ...log, title, range: given.range, automargin: true };
}

function draw() {
  for (const chart of charts) {
    const layout = {
      xaxis: { ...axis(chart.x, chart.lines.flatMap((line) => line.x)), showgrid: false, showline: true },
      yaxis: axis(chart.y, chart.lines.flatMap((line) => line.y)),
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

document.querySelectorAll("details").forEach((part) => (part.open = innerWidth > 768));
dark.addEventListener("change", draw);
draw();
