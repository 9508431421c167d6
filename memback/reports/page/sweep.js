"use strict";
(async () => {
  const data = await begin();
  if (!data) return;
  if (!data.values.length) {
    root.dataset.ready = "yes";
    return;
  }
  $("app").hidden = false;

  // -- where a point is: its number counts through the axes, the last one fastest

  const strides = data.axes.map(() => 1);
  for (let i = data.axes.length - 2; i >= 0; i--) strides[i] = strides[i + 1] * data.axes[i + 1].values.length;
  const axisOf = (key) => data.axes.findIndex((axis) => axis.key === key);
  const numberOf = (at) => at.reduce((sum, place, axis) => sum + place * strides[axis], 0);

  const state = {
    value: data.values.find((value) => value.name === data.view.value) || data.values[0],
    x: axisOf(data.view.x),
    y: data.view.y === null ? -1 : axisOf(data.view.y),
    at: data.axes.map(() => 0), // where to stand on the other axes
    chosen: null,
  };

  const amount = (value, n) => (value.unit === "FLOP" ? flops(n) : short(n));
  const precise = (value, n) => (value.unit === "FLOP" ? `${group(n)} FLOP` : `${exact(n)} (${short(n)})`);
  const missing = (number) => data.notes[number] || (state.value.name === "least_budget" ? "fits" : "not run");

  function place(column, row) {
    const at = [...state.at];
    at[state.x] = column;
    if (state.y >= 0) at[state.y] = row;
    return at;
  }
  const across = () => data.axes[state.x].values;
  const upwards = () => (state.y < 0 ? [""] : data.axes[state.y].values);
  const cellsOf = () => upwards().map((_, row) => across().map((_, column) => numberOf(place(column, row))));

  // -- the map

  const SCALE = ["heat-low", "heat-middle", "heat-high"];

  // Where values differ a lot, their logarithms are coloured, and zero gets a place below the least of them.
  function colouring(numbers) {
    const positive = numbers.filter((n) => n > 0);
    const logarithmic = positive.length > 1 && Math.max(...positive) / Math.min(...positive) > 30;
    if (!logarithmic) {
      const [low, high] = [Math.min(...numbers), Math.max(...numbers)];
      return { of: (n) => n, low, high, ticks: even(low, high) };
    }
    const [least, high] = [Math.min(...positive), Math.max(...positive)].map(Math.log2);
    const zero = positive.length < numbers.length;
    const low = zero ? least - (high - least) / 6 : least;
    const ticks = even(least, high).map(([at, size]) => [at, 2 ** size]);
    return { of: (n) => (n > 0 ? Math.log2(n) : low), low, high, ticks: zero ? [[low, 0], ...ticks] : ticks };
  }
  const even = (low, high) => (high > low ? [0, 1, 2, 3, 4].map((i) => low + (i * (high - low)) / 4) : [low]).map((at) => [at, at]);

  function draw() {
    const cells = cellsOf();
    const value = state.value;
    const at = (number) => value.data[number];
    const present = cells.flat().map(at).filter((n) => n !== null);
    $("heat-title").textContent = value.title;
    $("heat-note").textContent = note(present, cells.flat());
    fillNumbers(cells, at);
    showChosen();
    if (window.Plotly) drawMap(cells, at, present);
  }
  function drawMap(cells, at, present) {
    const value = state.value;
    const [columns, rows] = [across().length, upwards().length];
    const room = ($("heat").clientWidth - 150) / columns;
    $("heat").style.height = `${Math.max(220, Math.min(720, 130 + 46 * rows))}px`;
    const scale = present.length ? colouring(present) : { of: () => null, low: 0, high: 1, ticks: [] };
    const readable = room >= 70 && rows <= 24;
    const trace = {
      type: "heatmap", x: across(), y: upwards(), z: cells.map((row) => row.map((number) => (at(number) === null ? null : scale.of(at(number))))),
      zmin: scale.low, zmax: scale.high > scale.low ? scale.high : scale.low + 1, xgap: 2, ygap: 2,
      colorscale: SCALE.map((name, i) => [i / 2, colour(name)]),
      customdata: cells.map((row) => row.map((number) => plain(detail(number)))),
      hovertemplate: "%{customdata}<extra></extra>", hoverongaps: true,
      showscale: !narrow(),
      colorbar: { tickvals: scale.ticks.map(([place]) => place), ticktext: scale.ticks.map(([, n]) => amount(value, Math.round(n))), outlinewidth: 0, thickness: 14, tickfont: { color: colour("faint") } },
    };
    const annotations = readable ? labels(cells, at, room, scale) : [];
    Plotly.react("heat", [trace], layout({
      hovermode: "closest", dragmode: false, margin: { l: 12, r: 14, t: 12, b: 8 }, annotations,
      hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("ink") }, align: "left" },
      xaxis: { type: "category", title: { text: plain(data.axes[state.x].key) }, fixedrange: true, ticks: "", tickfont: { color: colour("ink") } },
      yaxis: { type: "category", title: { text: state.y < 0 ? "" : plain(data.axes[state.y].key) }, ticks: "", rangemode: "normal", showgrid: false, tickfont: { color: colour("ink") } },
    }), CONFIG);
    listen();
  }
  // What stands in the cells, as far as there is room; one without a value says why it has none.
  function labels(cells, at, room, scale) {
    const most = Math.floor((room - 8) / 7);
    return cells.flatMap((row, r) => row.map((number, c) => {
      const n = at(number);
      const words = n === null ? missing(number) : amount(state.value, n);
      const text = words.length > most ? `${words.slice(0, Math.max(1, most - 1))}…` : words;
      const ink = n === null ? colour("bad") : inkOn((scale.of(n) - scale.low) / (scale.high - scale.low || 1));
      return { x: c, y: r, showarrow: false, text: plain(text), font: { color: ink, size: 12 } };
    }));
  }
  // Black or white, whichever stands out more on a place of the scale, from 0 to 1.
  function inkOn(t) {
    const stops = SCALE.map(colour);
    const channel = (hex, i) => parseInt(hex.slice(1 + 2 * i, 3 + 2 * i), 16) / 255;
    const [from, to, way] = t < 0.5 ? [stops[0], stops[1], 2 * t] : [stops[1], stops[2], 2 * t - 1];
    const linear = [0, 1, 2].map((i) => ((1 - way) * channel(from, i) + way * channel(to, i)) ** 2.2);
    const light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    return light > 0.19 ? "#0b1220" : "#ffffff";
  }
  function note(present, numbers) {
    const blank = numbers.length - present.length;
    const range = present.length ? `From ${amount(state.value, Math.min(...present))} to ${amount(state.value, Math.max(...present))} here. ` : "";
    return `${range}${blank ? `${group(blank)} of ${group(numbers.length)} points have no such value. ` : ""}Choose a cell for all that is known of its point.`;
  }
  const where = (number) => data.axes.map((axis, i) => `${axis.key}=${axis.values[Math.floor(number / strides[i]) % axis.values.length]}`).join(", ");
  const detail = (number) => {
    const n = state.value.data[number];
    return `${where(number)}: ${n === null ? missing(number) : precise(state.value, n)}`;
  };

  // -- the table, and one point

  function fillNumbers(cells, at) {
    const head = make("tr", {}, make("th", { scope: "col" }, state.y < 0 ? "" : data.axes[state.y].key), ...across().map((text) => make("th", { scope: "col", class: "number" }, text)));
    $("numbers").tHead.replaceChildren(head);
    $("numbers").tBodies[0].replaceChildren(...cells.map((row, r) => make("tr", {}, make("th", { scope: "row" }, upwards()[r]),
      ...row.map((number) => make("td", { class: "number" }, at(number) === null ? missing(number) : group(at(number)))))));
  }
  function showChosen() {
    $("chosen").hidden = state.chosen === null;
    if (state.chosen === null) return;
    const number = state.chosen;
    $("chosen-title").textContent = where(number);
    const facts = data.values.filter((value) => value.data[number] !== null).map((value) => [value.title, precise(value, value.data[number])]);
    if (data.notes[number]) facts.unshift(["note", data.notes[number]]);
    $("chosen-facts").replaceChildren(...facts.map(([title, text]) => make("div", {}, make("dt", {}, title), make("dd", {}, text))));
  }
  function listen() {
    if ($("heat").dataset.listens) return;
    $("heat").dataset.listens = "yes";
    $("heat").on("plotly_click", (event) => {
      const [row, column] = event.points[0].pointIndex;
      state.chosen = numberOf(place(column, row));
      showChosen();
    });
  }

  // -- the controls

  function choices(select, names, chosen, change) {
    select.replaceChildren(...names.map((name, i) => make("option", { value: i }, name)));
    select.value = chosen;
    select.onchange = () => { change(Number(select.value)); state.chosen = null; controls(); draw(); };
  }
  function controls() {
    const keys = data.axes.map((axis) => axis.key);
    choices($("value"), data.values.map((value) => value.title), data.values.indexOf(state.value), (i) => { state.value = data.values[i]; });
    choices($("x"), keys, state.x, (i) => { if (i === state.y) state.y = state.x; state.x = i; });
    $("y-label").hidden = state.y < 0;
    if (state.y >= 0) choices($("y"), keys, state.y, (i) => { if (i === state.x) state.x = state.y; state.y = i; });
    for (const old of $("controls").querySelectorAll(".slice")) old.remove();
    data.axes.forEach((axis, i) => {
      if (i === state.x || i === state.y) return;
      const select = make("select", {});
      choices(select, axis.values, state.at[i], (place) => { state.at[i] = place; });
      $("controls").append(make("label", { class: "slice" }, `${axis.key} `, select));
    });
  }

  followLooks(draw);
  controls();
  draw();
  if (await startPlotly()) draw();
  root.dataset.ready = "yes";
})();
