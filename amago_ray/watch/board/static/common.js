// What both pages share: how they ask, how numbers read, colours, and charts.

export const AVERAGE_RETURN = "Average Total Return (Across All Env Names)";

// Okabe and Ito's colours, told apart by colour-blind readers too; those that are legible on the ground.
const LIGHT = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b07900", "#3a8fc4", "#444444"];
const DARK = ["#56b4e9", "#f08a4b", "#2fc196", "#e3a3c8", "#e6b450", "#9ad1f2", "#d0d5db"];
export const DASHES = ["solid", "dash", "dot", "dashdot"];

export const isDark = () => document.documentElement.dataset.theme === "dark";
export const colour = (i) => (isDark() ? DARK : LIGHT)[i % LIGHT.length];
export const dash = (i) => DASHES[Math.floor(i / LIGHT.length) % DASHES.length];
export const cssColour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export function setUpTheme(changed) {
  const kept = localStorage.getItem("theme");
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  document.documentElement.dataset.theme = kept || system;
  document.getElementById("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    localStorage.setItem("theme", document.documentElement.dataset.theme);
    changed();
  });
}

// An element; children are elements or texts, never HTML: names of runs are whatever somebody chose.
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") element.style.cssText = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export async function ask(path, query = {}) {
  const search = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const each of Array.isArray(value) ? value : [value]) search.append(name, each);
  }
  const answer = await fetch(`${path}?${search}`);
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error || answer.statusText);
  return content;
}

// ------------------------------------------------------------------ texts

export function count(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 1e9) return `${(value / 1e9).toPrecision(4)} G`;
  if (size >= 1e6) return `${(value / 1e6).toPrecision(4)} M`;
  return Math.round(value).toLocaleString("en-US");
}

export function number(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e7)) return value.toExponential(2);
  return Number(value.toPrecision(digits)).toLocaleString("en-US", { maximumFractionDigits: 4 });
}

export function rate(value) {
  if (value === null || value === undefined) return "";
  return `${value >= 10 ? Math.round(value).toLocaleString("en-US") : Number(value.toPrecision(2))}/s`;
}

export function duration(seconds) {
  if (seconds < 120) return `${Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 120) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

// Plotly reads some tags in texts.
export const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

// ------------------------------------------------------------------ charts

export function layout(changes = {}) {
  const axis = {
    gridcolor: cssColour("--line"), zeroline: false, linecolor: cssColour("--line"), automargin: true,
    tickfont: { size: 11, color: cssColour("--soft") }, title: { standoff: 6, font: { size: 11.5, color: cssColour("--soft") } },
    exponentformat: "SI", separatethousands: true,
  };
  const { xaxis, yaxis, ...others } = changes;
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, uirevision: "kept",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: cssColour("--ink") },
    margin: { l: 46, r: 12, t: 8, b: 36 }, hovermode: "x", hoverlabel: { namelength: 32, font: { size: 12 } },
    xaxis: { ...axis, ...xaxis, title: { ...axis.title, ...(xaxis || {}).title } },
    yaxis: { ...axis, ...yaxis, title: { ...axis.title, ...(yaxis || {}).title } },
    ...others,
  };
}

export const CONFIG = { displayModeBar: false, responsive: true, doubleClick: "reset" };

export function draw(element, traces, changes) {
  return window.Plotly.react(element, traces, layout(changes), CONFIG);
}

// Free what Plotly keeps of the charts below an element before they go.
export function clear(element) {
  for (const chart of element.querySelectorAll(".js-plotly-plot")) window.Plotly.purge(chart);
  element.replaceChildren();
}
