const charts = JSON.parse(document.getElementById("charts").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// Of what depends on the x that the reader has chosen, what belongs to it.
function chosen(value) {
  if (!value || Array.isArray(value) || typeof value === "string") return value;
  return value[document.querySelector("input[name=x]:checked").value];
}

// Several lines of one x as one with gaps: hundreds of lines are slow.
function joined(line) {
  if (!line.several) return line;
  const { names, values } = line.several;
  const each = (value) => names.flatMap((name, index) => [...line.x.map((x, at) => value(name, index, x, at)), null]);
  return {
    ...line,
    x: each((name, index, x) => x),
    y: each((name, index, x, at) => values[at][index]),
    text: each((name) => name),
  };
}

function trace(line) {
  const own = line.colours ? line.colours[dark.matches ? 1 : 0] : colour("--soft");
  return {
    x: chosen(line.x),
    y: line.y,
    name: line.name,
    text: line.text,
    mode: line.mode ?? "lines",
    opacity: line.opacity ?? 1,
    line: { color: own, width: line.width ?? 1.25, dash: line.dash ?? "solid" },
    marker: { color: own, size: line.size ?? 7, symbol: line.symbol ?? "circle" },
    hovertemplate: line.silent ? undefined : (line.hover ?? `%{${line.text ? "text" : "fullData.name"}}<br>%{y:.4g}<extra></extra>`),
    hoverinfo: line.silent ? "skip" : undefined,
  };
}

// Powers of ten over many decades, else 1, 2, 5.
function logTicks(axis, values) {
  if (axis.dtick) return { dtick: axis.dtick, exponentformat: "power" };
  const known = (axis.range?.map((power) => 10 ** power) ?? values).filter((value) => value > 0);
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
  const log = given.log ? { type: "log", ...logTicks(given, values) } : {};
  const title = given.title ? { text: chosen(given.title), standoff: 8 } : undefined;
  const percent = given.percent ? { tickformat: ".0%" } : {};
  return { ...style, ...log, ...percent, title, range: given.range, hoverformat: given.hover, automargin: true };
}

function draw() {
  for (const chart of charts) {
    const lines = chart.lines.map(joined);
    const layout = {
      xaxis: { ...axis(chart.x, lines.flatMap((line) => chosen(line.x))), showgrid: chart.x.grid ?? false, showline: true },
      yaxis: axis(chart.y, lines.flatMap((line) => line.y)),
      margin: { l: 8, r: 12, t: 10, b: 44 },
      font: { family: "system-ui, sans-serif", size: 12, color: colour("--soft") },
      hoverlabel: { bgcolor: colour("--panel"), font: { color: colour("--ink") }, align: "left" },
      hovermode: "closest",
      paper_bgcolor: "transparent",
      plot_bgcolor: "transparent",
      showlegend: false,
    };
    const place = document.getElementById(chart.id);
    Plotly.react(place, lines.map(trace), layout, { displayModeBar: false, responsive: true });
  }
}

document.querySelectorAll("details").forEach((part) => (part.open = innerWidth > 768));
document.querySelectorAll("input[name=x]").forEach((input) => input.addEventListener("change", draw));
dark.addEventListener("change", draw);
draw();
