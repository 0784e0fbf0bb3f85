const charts = JSON.parse(document.getElementById("charts").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const axisTitles = { steps: "steps", seconds: "seconds of training", lr: "learning rate" };

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function trace(line, x) {
  if (line.blocks) return blocks(line);
  return {
    x: line[x],
    y: line.y,
    name: line.label,
    mode: x === "lr" ? "lines+markers" : "lines",
    hoverinfo: line.faint ? "skip" : "all",
    opacity: line.faint ? 0.3 : 1,
    line: { color: line.colours[dark.matches ? 1 : 0], width: line.faint ? 1 : 2.25 },
  };
}

// One line with gaps, block after block: hundreds of lines are slow.
function blocks(line) {
  const each = (value) => line.blocks.flatMap((name, index) => [...line.steps.map((step, at) => value(name, index, step, at)), null]);
  return {
    x: each((name, index, step) => step),
    y: each((name, index, step, at) => line.values[at][index]),
    text: each((name) => name),
    hovertemplate: "%{text}<br>step %{x}: %{y:.4g}<extra></extra>",
    mode: "lines",
    opacity: 0.6,
    line: { color: line.colours[dark.matches ? 1 : 0], width: 1.25 },
  };
}

function layout(chart, x) {
  const axis = { gridcolor: colour("--rule"), linecolor: colour("--rule"), zeroline: false, fixedrange: true };
  const y = { ...axis, automargin: true, hoverformat: chart.percent ? ".1%" : ".4f" };
  if (chart.percent) y.tickformat = ".0%";
  if (chart.range) y.range = chart.range;
  if (chart.log) Object.assign(y, { type: "log", dtick: 1, exponentformat: "power" });
  const log = x === "lr" ? { type: "log", dtick: 1, hoverformat: ".3g", exponentformat: "power" } : {};
  return {
    xaxis: { ...axis, ...log, title: { text: axisTitles[x], standoff: 8 }, showgrid: x === "lr", showline: true },
    yaxis: y,
    margin: { l: 8, r: 12, t: 10, b: 44 },
    font: { family: "system-ui, sans-serif", size: 12, color: colour("--soft") },
    hoverlabel: { bgcolor: colour("--panel"), font: { color: colour("--ink") } },
    hovermode: "closest",
    paper_bgcolor: "transparent",
    plot_bgcolor: "transparent",
    showlegend: false,
  };
}

function draw() {
  const against = document.querySelector("input[name=against]:checked").value;
  for (const chart of charts) {
    const place = document.getElementById(chart.id);
    if (!place) continue;
    const x = chart.x ?? against;
    const traces = chart.lines.map((line) => trace(line, x));
    Plotly.react(place, traces, layout(chart, x), { displayModeBar: false, responsive: true });
  }
}

document.querySelectorAll("input[name=against]").forEach((input) => input.addEventListener("change", draw));
dark.addEventListener("change", draw);
draw();
