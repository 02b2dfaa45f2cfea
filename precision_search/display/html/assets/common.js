"use strict";
// What all parts of the page share: its data, making elements from text, the selected plan, colours, the tip.

const page = JSON.parse(document.getElementById("data").textContent);
const planById = new Map(page.plans.map((plan) => [plan.id, plan]));
const rejected = (plan) => plan.verdict !== "stable";
const many = page.plans.length > 150;
const WORDS = { fp32: "fp32", low: "low", fixed: "never low", mixed: "partly in fp32", absent: "not there" };
const SYMBOLS = { stable: "circle", mismatch: "x", nonfinite: "triangle-up", error: "square" };

// Text stays text: children that are strings become text nodes, and nothing here parses HTML.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false)
      element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const definitions = (pairs) =>
  make("dl", {}, ...pairs.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));

function number(value, digits = 3) {
  if (value === null || value === undefined) return "-";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) return value.toExponential(Math.max(0, digits - 1)).replace("e+", "e");
  return size >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(digits)));
}

function bits(text) {
  const raw = atob(text);
  return { has: (index) => (raw.charCodeAt(index >> 3) >> (index & 7)) & 1 };
}

// The plan that the details and the blocks show, and whether the table shows it alone.
const selection = {
  chosen: (page.plans.find((plan) => plan.chosen) ?? page.plans[0] ?? null)?.id ?? null,
  listeners: [],
  plan: null,
  alone: false,
  select(id, alone) {
    this.plan = planById.get(id) ?? null;
    this.alone = alone;
    for (const listener of this.listeners) listener();
  },
  clear() {
    this.select(this.chosen, false);
  },
};

function theme() {
  const style = getComputedStyle(document.documentElement);
  return new Proxy({}, { get: (_, name) => style.getPropertyValue(`--${name}`).trim() });
}

// Phones scroll with the finger that would zoom a plot.
const touch = matchMedia("(pointer: coarse)").matches;
const narrow = () => innerWidth < 640;
const CONFIG = {
  displaylogo: false,
  responsive: true,
  showSendToCloud: false,
  showEditInChartStudio: false,
  displayModeBar: touch ? false : "hover",
  modeBarButtonsToRemove: ["toImage", "select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
};

function layoutBase(colours, height) {
  return {
    height,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colours.ink },
    margin: { l: 50, r: 14, t: 14, b: 46 },
    hovermode: "closest",
    dragmode: touch ? false : "zoom",
    showlegend: false,
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colours.muted, activecolor: colours.ink },
  };
}

const axis = (colours, more) => ({
  gridcolor: colours.grid,
  linecolor: colours.line,
  zeroline: false,
  showline: true,
  ticks: "outside",
  tickcolor: colours.line,
  automargin: true,
  ...more,
});

const tip = {
  box: document.getElementById("tip"),
  show(x, y, ...content) {
    this.box.replaceChildren(...content);
    this.box.hidden = false;
    const { width, height } = this.box.getBoundingClientRect();
    const left = x + 14 + width > innerWidth ? x - 14 - width : x + 14;
    const top = y + 14 + height > innerHeight ? y - 14 - height : y + 14;
    this.box.style.left = `${Math.max(4, Math.min(left, innerWidth - width - 4))}px`;
    this.box.style.top = `${Math.max(4, top)}px`;
  },
  hide() {
    this.box.hidden = true;
  },
};

// Draws a plot and keeps what a pointer does to it: `content` gives the tip of a point, `act` answers a click.
function draw(id, traces, layout, content, act) {
  const box = document.getElementById(id);
  const first = !box.data;
  Plotly.react(box, traces, layout, CONFIG);
  if (!first) return;
  box.on("plotly_hover", ({ points, event }) => {
    if (points[0].customdata !== undefined) tip.show(event.clientX, event.clientY, ...content(points[0].customdata));
  });
  box.on("plotly_unhover", () => tip.hide());
  if (act) box.on("plotly_click", ({ points }) => points[0].customdata !== undefined && act(points[0].customdata));
}

const legend = (id, ...entries) =>
  document.getElementById(id)?.replaceChildren(...entries.map((parts) => make("span", {}, ...parts)));
const mark = (verdict) => make("i", { class: `mark ${verdict}` });
