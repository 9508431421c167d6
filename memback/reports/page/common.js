"use strict";
// What every page has: how its data travels, numbers and elements, the theme, and how plots look.

const $ = (id) => document.getElementById(id);
const root = document.documentElement;

// -- what travels in the page

async function unpack(id) {
  const bytes = Uint8Array.from(atob($(id).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

// -- numbers and elements

const group = (n) => Math.round(n).toString().replace(/\B(?=(\d{3})+$)/g, ",");
const exact = (n) => `${group(n)} B`;
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
function unitOf(n) {
  let unit = 0;
  while (unit < 5 && Math.abs(n) / 1024 ** unit >= 1024) unit++;
  return unit;
}
function short(n) {
  const unit = unitOf(n);
  return unit ? `${(n / 1024 ** unit).toFixed(2)} ${UNITS[unit]}` : `${n} B`;
}
function scaled(n, steps, unit) {
  for (const [scale, prefix] of steps) if (n >= scale) return `${(n / scale).toPrecision(3)} ${prefix}${unit}`;
  return `${n} ${unit}`;
}
const flops = (n) => scaled(n, [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]], "FLOP");
const seconds = (s) => scaled(s * 1e9, [[1e9, ""], [1e6, "m"], [1e3, "µ"], [1, "n"]], "s");

// Text alone is ever put into elements: names in a report may be anything.
function make(tag, options = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}
// Plotly reads a little HTML in its texts.
const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const colour = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
function faded(hex, alpha) {
  const n = parseInt(hex.slice(1), 16);
  return `rgba(${n >> 16}, ${(n >> 8) & 255}, ${n & 255}, ${alpha})`;
}

// -- theme

const dark = matchMedia("(prefers-color-scheme: dark)");
let chosenTheme = null;
const asked = new URLSearchParams(location.search).get("theme");
if (asked === "dark" || asked === "light") chosenTheme = asked;
function applyTheme(theme) {
  root.dataset.theme = theme;
  $("theme").textContent = theme === "dark" ? "Light" : "Dark";
  $("theme").setAttribute("aria-label", theme === "dark" ? "Switch to light colours" : "Switch to dark colours");
}
const theme = () => chosenTheme || (dark.matches ? "dark" : "light");
applyTheme(theme());
$("theme").removeAttribute("aria-pressed");
$("theme").hidden = false;

const sorry = (error) => $("main").append(make("p", { class: "note bad" }, `This browser can't show the pictures (${error}); use a current one.`));

// The page's data; null where the browser can't unpack it.
async function begin() {
  try {
    return JSON.parse(await unpack("packed-data"));
  } catch (error) {
    sorry(error);
    return null;
  }
}

// Plotly takes longer to start than all the rest of the page: first everything else is put on the screen. Whether it is there.
async function startPlotly() {
  const painted = new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  await Promise.race([painted, new Promise((done) => setTimeout(done, 200))]);
  root.dataset.open = "yes";
  try {
    const code = document.createElement("script");
    code.textContent = await unpack("packed-plotly");
    document.head.append(code);
    return true;
  } catch (error) {
    sorry(error);
    return false;
  }
}

// -- what all plots have in common

const CONFIG = { displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: false };
const narrow = () => innerWidth < 760;
const coarse = matchMedia("(pointer: coarse)");
function layout(extra) {
  const axis = { gridcolor: colour("line"), zerolinecolor: colour("line"), linecolor: colour("line"), tickcolor: colour("line"), automargin: true };
  const font = { family: "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", size: 12.5, color: colour("faint") };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font, margin: { l: 12, r: 14, t: 34, b: 8 },
    showlegend: false, hovermode: false, dragmode: coarse.matches ? false : "zoom", ...extra,
    xaxis: { ...axis, showgrid: false, zeroline: false, ...(extra.xaxis || {}) },
    yaxis: { ...axis, fixedrange: true, rangemode: "tozero", ...(extra.yaxis || {}) },
  };
}

// Draw again when the theme, the width or the paper changes; `drawAll` draws at once what waits until it is in sight.
function followLooks(redraw, drawAll = () => {}) {
  $("theme").addEventListener("click", () => { chosenTheme = theme() === "dark" ? "light" : "dark"; applyTheme(chosenTheme); redraw(); });
  dark.addEventListener("change", () => { applyTheme(theme()); redraw(); });
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    setTimeout(redraw, 100);
  });
  addEventListener("beforeprint", () => { applyTheme("light"); for (const one of document.querySelectorAll("details")) one.open = true; redraw(); drawAll(); });
  addEventListener("afterprint", () => { applyTheme(theme()); redraw(); });
}
