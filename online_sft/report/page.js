"use strict";
// The page of a report. All that comes from a run is put in as text, never as HTML.

const CONTENT = JSON.parse(document.getElementById("content").textContent);
const COLOURS = ["#2f81f7", "#e3742f", "#2da44e", "#a371f7", "#d4a72c", "#d1417e", "#1b9aaa", "#8b949e"];
const DASHES = ["solid", "dot", "dash", "dashdot", "longdash", "solid", "dot", "dash"];
const byId = (id) => document.getElementById(id);
const isCompared = CONTENT.runs.length > 1;

function element(tag, options = {}, ...children) {
  const { data, style, ...properties } = options;
  const made = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(data ?? {})) made.setAttribute(name, value);
  for (const [name, value] of Object.entries(style ?? {})) made.style.setProperty(name, value);
  made.append(...children);
  return made;
}

function decimal(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size >= 1e-3 && size < 1e5 ? String(Number(value.toPrecision(4))) : value.toExponential(2);
}

function duration(seconds) {
  const total = Math.round(seconds);
  const [hours, minutes] = [Math.floor(total / 3600), Math.floor((total % 3600) / 60)];
  return hours ? `${hours} h ${minutes} min` : minutes ? `${minutes} min ${total % 60} s` : `${total} s`;
}

// --- overview -------------------------------------------------------------------------------------------------------

function fact(name, value) {
  return element("div", {}, element("span", { textContent: name }), element("b", { textContent: value }));
}

function lastOf(run, name) {
  const series = run.metrics[name];
  return series && series.values.length ? series.values.at(-1) : null;
}

function showRun(run, index) {
  const setup = run.setup, hardware = setup.hardware;
  const times = Object.values(run.seconds), steps = Object.keys(run.seconds).map(Number);
  const box = element("div", { className: "run" });
  const chip = element("span", { className: "chip", style: { background: COLOURS[index % COLOURS.length] } });
  box.append(element("h3", {}, chip, run.name));
  const facts = element("div", { className: "facts" }, fact("trainer", setup.trainer), fact("model", setup.model ?? "–"));
  facts.append(fact("parameters", `${decimal(setup.trained_parameters)} trained of ${decimal(setup.parameters)}`));
  if (steps.length) facts.append(fact("steps", decimal(Math.max(...steps))), fact("time", duration(times.at(-1))));
  if (setup.resumed_at.length) facts.append(fact("resumed at step", setup.resumed_at.join(", ")));
  facts.append(fact("data", setup.data.rows === null ? setup.data.kind : `${decimal(setup.data.rows)} rows`));
  facts.append(fact("processes", `${hardware.processes}, ${hardware.gpus.length ? hardware.gpus.join(", ") : hardware.cpu}`));
  for (const name of ["reward", "score", "eval_pass@1", "eval_return", "loss", "kl"]) {
    if (lastOf(run, name) !== null) facts.append(fact(`last ${name}`, decimal(lastOf(run, name))));
  }
  box.append(facts, element("div", { className: "grey", textContent: setup.objective }));
  if (setup.ledger !== null) {
    const text = setup.ledger.length ? "Bias ledger: what biases the gradient or changes the objective" : "Bias ledger: empty, the expected gradient is exact";
    box.append(element("div", { textContent: text }));
    const entries = setup.ledger.map((bias) => element("li", {}, element("code", { textContent: `${bias.option}=${bias.value}` }), `: ${bias.effect}`));
    if (entries.length) box.append(element("ul", { className: "ledger" }, ...entries));
  }
  const details = element("details", {}, element("summary", { textContent: "command, data, versions" }));
  details.append(element("div", { className: "code", textContent: setup.command }));
  details.append(element("div", { className: "code", textContent: `data: sha256 ${setup.data.sha256 ?? "unknown"}` }));
  details.append(element("div", { className: "code", textContent: Object.entries(setup.versions).map((pair) => pair.join(" ")).join(", ") }));
  box.append(details);
  return box;
}

// --- curves ---------------------------------------------------------------------------------------------------------

const view = { smoothing: 0.6, axis: "steps", range: null };
const plots = []; // {node, draw}, of charts that have been drawn

function cssColour(name) {
  const probe = element("i", { style: { color: `var(--${name})` } });
  document.body.append(probe);
  const colour = getComputedStyle(probe).color;
  probe.remove();
  return colour;
}

function smooth(values, weight) {
  // exponential, without the bias towards its beginning
  let mean = 0, mass = 0;
  return values.map((value) => {
    mean = weight * mean + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return mean / mass;
  });
}

function xOf(run, steps) {
  if (view.axis === "minutes") return steps.map((step) => run.seconds[step] / 60);
  if (view.axis === "steps") return steps;
  let next = 0; // what was known at the step
  return steps.map((step) => {
    while (next < run.tokens.steps.length && run.tokens.steps[next] <= step) next += 1;
    return next ? run.tokens.values[next - 1] : 0;
  });
}

function shortName(name, chart) {
  const prefix = name.slice(0, name.lastIndexOf("/") + 1);
  return prefix && chart.lines.every((line) => line.startsWith(prefix)) ? name.slice(prefix.length) : name;
}

function translucent(hex, opacity) {
  const parts = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  return `rgba(${parts.join(",")},${opacity})`;
}

function tracesOf(chart) {
  return CONTENT.runs.flatMap((run, runIndex) => {
    // the upper end of a band is filled down to the trace before it, the lower end
    const order = chart.kind === "band" ? [0, 2, 1] : chart.lines.map((_, index) => index);
    return order.flatMap((index) => tracesOfLine(chart, index, run, runIndex));
  });
}

function tracesOfLine(chart, index, run, runIndex) {
  const name = chart.lines[index], series = run.metrics[name];
  if (!series || !series.steps.length) return [];
  const isBand = chart.kind === "band", isEnd = isBand && index !== 1;
  const colour = COLOURS[(isCompared || isBand ? runIndex : index) % COLOURS.length];
  const label = [isCompared ? run.name : null, chart.lines.length > 1 || !isCompared ? shortName(name, chart) : null];
  const common = {
    x: xOf(run, series.steps), y: smooth(series.values, view.smoothing), name: label.filter(Boolean).join(" "),
    mode: series.steps.length > 1 ? "lines" : "markers", marker: { color: colour }, showlegend: !isEnd,
  };
  if (chart.kind === "stack" && !isCompared) {
    return [{ ...common, stackgroup: "one", line: { width: 0.5, color: colour }, fillcolor: translucent(colour, 0.6) }];
  }
  const dash = isCompared && !isBand ? DASHES[index % DASHES.length] : "solid";
  const fill = isBand && index === 2 ? { fill: "tonexty", fillcolor: translucent(colour, 0.18) } : {};
  const smoothed = { ...common, ...fill, line: { color: colour, width: isEnd ? 0 : 2, dash } };
  if (isEnd || view.smoothing === 0 || series.steps.length < 3) return [smoothed];
  const raw = { ...common, y: series.values, line: { color: translucent(colour, 0.4), width: 1 }, hoverinfo: "skip", showlegend: false };
  return [raw, smoothed];
}

function layoutOf(chart) {
  const text = cssColour("text"), line = cssColour("line");
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
  return {
    margin: { l: 44, r: 8, t: 6, b: 30 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: text, size: 11 }, hovermode: "x unified", hoverlabel: { bgcolor: cssColour("soft"), font: { color: text } },
    showlegend: chart.lines.length > 1 || isCompared, legend: { orientation: "h", y: -0.16, font: { size: 10 } },
    xaxis: { ...axis, ...(view.range ? { range: view.range } : {}) },
    yaxis: { ...axis, exponentformat: "power", ...(chart.kind === "stack" ? { rangemode: "tozero" } : {}) },
    dragmode: "zoom",
  };
}

const OPTIONS = { displayModeBar: false, responsive: true, doubleClick: false };

function figureOf(chart) {
  const plot = element("div", { className: "plot" });
  const unit = element("span", { textContent: chart.unit ? `  ${chart.unit}` : "" });
  const caption = element("figcaption", { title: chart.meaning }, chart.title, unit);
  const figure = element("figure", { data: { role: "img", "aria-label": spoken(chart) } }, caption, plot);
  const draw = () => Plotly.react(plot, tracesOf(chart), layoutOf(chart), OPTIONS);
  whenSeen(plot, () => {
    draw().then(() => {
      plot.on("plotly_relayout", (change) => {
        if (change["xaxis.range[0]"] !== undefined) zoom([change["xaxis.range[0]"], change["xaxis.range[1]"]]);
      });
      plot.on("plotly_doubleclick", () => zoom(null));
    });
    plots.push({ node: plot, draw });
  });
  return figure;
}

function spoken(chart) {
  const parts = CONTENT.runs.flatMap((run) => chart.lines.filter((name) => run.metrics[name]?.values.length).map((name) => {
    const values = run.metrics[name].values;
    return `${run.name} ${name}: from ${decimal(values[0])} to ${decimal(values.at(-1))}`;
  }));
  return `${chart.title}. ${parts.join("; ")}`;
}

let isZooming = false;
function zoom(range) {
  if (isZooming) return;
  isZooming = true;
  view.range = range;
  Promise.all(plots.filter((plot) => !plot.isHeatmap).map((plot) => plot.draw())).finally(() => (isZooming = false));
}

const observer = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    observer.unobserve(entry.target);
    entry.target.whenSeen();
  }
}, { rootMargin: "300px" });

function whenSeen(node, call) {
  node.whenSeen = call;
  observer.observe(node);
}

function redraw() {
  for (const plot of plots) plot.draw();
}

function showCharts() {
  for (const section of new Set(CONTENT.charts.map((chart) => chart.section))) {
    const charts = CONTENT.charts.filter((chart) => chart.section === section);
    byId("charts").append(element("h3", { textContent: section }), element("div", { className: "grid" }, ...charts.map(figureOf)));
  }
  byId("smoothing").addEventListener("input", (event) => {
    view.smoothing = Number(event.target.value);
    byId("smoothed").textContent = view.smoothing.toFixed(2);
    redraw();
  });
  byId("axis").addEventListener("change", (event) => {
    Object.assign(view, { axis: event.target.value, range: null });
    redraw();
  });
  byId("unzoom").addEventListener("click", () => zoom(null));
  byId("axis").querySelector("[value=tokens]").hidden = CONTENT.runs.some((run) => !run.tokens.steps.length);
}

// --- rewards over time ----------------------------------------------------------------------------------------------

function showRewards() {
  const runs = CONTENT.runs.filter((run) => run.rewards);
  byId("rewards").hidden = !runs.length;
  for (const run of runs) {
    const { steps, rewards, shares } = run.rewards;
    const plot = element("div", { className: "plot" });
    const caption = element("figcaption", {}, run.name, element("span", { textContent: "  share of the completions with each reward" }));
    byId("heatmaps").append(element("figure", { data: { role: "img", "aria-label": `Rewards of ${run.name} over its steps` } }, caption, plot));
    const draw = () => {
      const layout = layoutOf({ lines: ["reward"], kind: "lines" });
      const isFew = rewards.length <= 8;
      const yaxis = isFew ? { ...layout.yaxis, type: "category" } : layout.yaxis;
      const colours = [[0, cssColour("soft")], [1, "#2f81f7"]];
      const y = isFew ? rewards.map(decimal) : rewards;
      const trace = { type: "heatmap", x: steps, y, z: shares, colorscale: colours, colorbar: { thickness: 10, tickformat: ".0%" } };
      trace.hovertemplate = "step %{x}<br>reward %{y}<br>%{z:.1%}<extra></extra>";
      return Plotly.react(plot, [trace], { ...layout, hovermode: "closest", yaxis, xaxis: { ...layout.xaxis, range: undefined } }, OPTIONS);
    };
    whenSeen(plot, () => { draw(); plots.push({ node: plot, draw, isHeatmap: true }); });
  }
}

// --- samples --------------------------------------------------------------------------------------------------------

const samples = CONTENT.runs.flatMap((run, runIndex) => run.samples.map((sample) => ({ ...sample, run: runIndex })));
const browser = { found: [], selected: 0, shown: 0 };
const PAGE = 200;

function numOf(sample, name) {
  if (name === "step") return sample.step;
  return name === "length" ? sample.lengths.length : sample.values[name] ?? null;
}

function unpacked(text) {
  return Array.from(text, (character) => character.charCodeAt(0) - 35);
}

function promptEnd(sample) {
  // what comes before the first token with loss
  if (sample.weights.length < 2 || sample.weights[0] !== null) return 0;
  const number = sample.runs.charCodeAt(0) - 35;
  return unpacked(sample.lengths.slice(0, number)).reduce((sum, length) => sum + length, 0);
}

function search() {
  const words = byId("search").value.toLowerCase(), run = byId("run").value, by = byId("sort").value;
  const sign = byId("descending").checked ? -1 : 1;
  browser.found = samples.filter((sample) => (run === "all" || sample.run === Number(run)) && (!words || sample.text.toLowerCase().includes(words)));
  browser.found.sort((a, b) => {
    const [x, y] = [numOf(a, by), numOf(b, by)];
    if (x === null || y === null) return (x === null) - (y === null);
    return sign * (x - y);
  });
  const thinned = CONTENT.runs.some((one) => one.recorded_samples > one.samples.length);
  const recorded = CONTENT.runs.reduce((sum, one) => sum + one.recorded_samples, 0);
  byId("found").textContent = `${browser.found.length.toLocaleString("en")} of ${samples.length.toLocaleString("en")}` +
    (thinned ? `, evenly spaced of ${recorded.toLocaleString("en")} recorded` : "");
  browser.shown = 0;
  byId("list").replaceChildren();
  showMore();
  select(0);
}

function showMore() {
  const next = browser.found.slice(browser.shown, browser.shown + PAGE);
  byId("list").append(...next.map((sample, index) => itemOf(sample, browser.shown + index)));
  browser.shown += next.length;
}

function itemOf(sample, place) {
  const numbers = [`step ${sample.step}`, ...Object.entries(sample.values).map(([name, value]) => `${name} ${decimal(value)}`)];
  const item = element("li", { id: `sample-${place}`, data: { role: "option", "aria-selected": "false" } });
  const completion = sample.text.slice(promptEnd(sample)).trim() || sample.text;
  item.append(element("div", { className: "what", textContent: completion.slice(0, 300) }));
  item.append(element("div", { className: "numbers", textContent: numbers.join(" · ") }));
  if (isCompared) item.firstChild.prepend(element("span", { className: "chip", style: { background: COLOURS[sample.run % COLOURS.length] } }));
  item.addEventListener("click", () => select(place));
  return item;
}

function select(place) {
  const detail = byId("detail");
  if (!browser.found.length) {
    detail.replaceChildren(element("p", { className: "grey", textContent: samples.length ? "Nothing found." : "No samples were recorded (record_samples=0)." }));
    byId("list").removeAttribute("aria-activedescendant");
    return;
  }
  const list = byId("list");
  browser.selected = Math.min(Math.max(place, 0), browser.found.length - 1);
  while (browser.shown <= browser.selected) showMore();
  list.querySelector('[aria-selected="true"]')?.setAttribute("aria-selected", "false");
  const item = byId(`sample-${browser.selected}`);
  item.setAttribute("aria-selected", "true");
  list.setAttribute("aria-activedescendant", item.id);
  if (item.offsetTop < list.scrollTop + list.offsetTop) list.scrollTop = item.offsetTop - list.offsetTop;
  const below = item.offsetTop + item.offsetHeight - list.offsetTop - list.clientHeight;
  if (below > list.scrollTop) list.scrollTop = below;
  showDetail(browser.found[browser.selected]);
}

function look(weight, largest) {
  if (weight === null) return { className: "none" };
  if (weight === 0) return { className: "zero" };
  const strength = 0.12 + (0.58 * Math.abs(weight)) / largest;
  return { className: weight > 0 ? "positive" : "negative", style: { "--strength": strength.toFixed(3) } };
}

function showDetail(sample) {
  const facts = element("div", { className: "facts" }, fact("run", CONTENT.runs[sample.run].name), fact("step", decimal(sample.step)));
  for (const [name, value] of Object.entries(sample.values)) facts.append(fact(name, decimal(value)));
  facts.append(fact("tokens", decimal(sample.lengths.length)));
  const largest = sample.weights.reduce((most, weight) => Math.max(most, Math.abs(weight ?? 0)), 0);
  facts.append(fact("largest |weight|", decimal(largest)));
  const tokens = element("div", { className: "tokens" });
  const lengths = unpacked(sample.lengths), runs = unpacked(sample.runs);
  const weights = runs.flatMap((length, run) => Array(length).fill(sample.weights[run]));
  let at = 0;
  weights.forEach((weight, place) => {
    const text = sample.text.slice(at, at + lengths[place]);
    at += lengths[place];
    const title = weight === null ? "no loss" : `weight ${decimal(weight)}`;
    tokens.append(element("span", { textContent: text, title: `${title}, token ${place}`, ...look(weight, largest) }));
  });
  byId("detail").replaceChildren(facts, tokens);
}

function showBrowser() {
  byId("run").append(element("option", { value: "all", textContent: "all" }));
  CONTENT.runs.forEach((run, index) => byId("run").append(element("option", { value: index, textContent: run.name })));
  byId("run").parentElement.hidden = !isCompared;
  const names = new Set(samples.flatMap((sample) => Object.keys(sample.values)));
  for (const name of [...names, "step", "length"]) byId("sort").append(element("option", { value: name, textContent: name }));
  const shades = [["largest weight of the sample", 1], ["most negative", -1], ["weight 0", 0], ["without loss", null]];
  byId("legend").append(...shades.map(([text, weight]) => element("span", { textContent: text, ...look(weight, 1) })));
  for (const id of ["search", "run", "sort", "descending"]) byId(id).addEventListener("input", search);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("list").addEventListener("scroll", (event) => {
    const list = event.target;
    if (list.scrollTop + list.clientHeight > list.scrollHeight - 400 && browser.shown < browser.found.length) showMore();
  });
  const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
  byId("list").addEventListener("keydown", (event) => {
    if (!(event.key in moves)) return;
    event.preventDefault();
    select(browser.selected + moves[event.key]);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.target.matches("input, select, textarea")) return;
    event.preventDefault();
    byId("search").focus();
  });
  search();
}

// --- configuration --------------------------------------------------------------------------------------------------

function showConfiguration() {
  const choices = [["changed", "what is not at its default"], ["all", "every field"]];
  if (isCompared) choices.unshift(["differs", "what differs between the runs"]);
  for (const [value, textContent] of choices) byId("fields").append(element("option", { value, textContent }));
  const fill = () => {
    const rows = CONTENT.configuration.filter((row) => byId("fields").value === "all" || row[byId("fields").value]);
    const head = element("tr", {}, ...["field", ...CONTENT.runs.map((run) => run.name)].map((textContent) => element("th", { textContent, scope: "col" })));
    const body = rows.map((row) => element("tr", { className: row.differs ? "differs" : "" },
      element("th", { textContent: row.name, scope: "row" }), ...row.values.map((textContent) => element("td", { textContent }))));
    byId("fields-table").replaceChildren(head, ...body);
  };
  byId("fields").addEventListener("change", fill);
  fill();
}

// --- the page -------------------------------------------------------------------------------------------------------

for (const section of document.querySelectorAll("main > section")) {
  byId("sections").append(element("a", { href: `#${section.id}`, textContent: section.querySelector("h2").textContent }));
}
byId("theme").addEventListener("click", () => {
  const isDark = getComputedStyle(document.documentElement).colorScheme === "dark" ||
    (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = isDark ? "light" : "dark";
  redraw();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
byId("runs").append(...CONTENT.runs.map(showRun));
showCharts();
showRewards();
showBrowser();
showConfiguration();
document.documentElement.dataset.ready = "true";
