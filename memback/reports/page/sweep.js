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

  // Where values differ a lot, their logarithms are coloured.
  function colouring(numbers) {
    const positive = numbers.filter((n) => n > 0);
    const [least, most] = [Math.min(...positive), Math.max(...positive)];
    const logarithmic = positive.length > 1 && most / least > 30;
    const of = (n) => (n === null ? null : logarithmic ? (n > 0 ? Math.log2(n) : null) : n);
    const low = logarithmic ? Math.log2(least) : Math.min(...numbers);
    const high = logarithmic ? Math.log2(most) : Math.max(...numbers);
    const ticks = [0, 1, 2, 3, 4].map((i) => low + (i * (high - low)) / 4);
    return { of, low, high, ticks: high > low ? ticks : [low], size: (t) => (logarithmic ? 2 ** t : t) };
  }

  function draw() {
    const cells = cellsOf();
    const value = state.value;
    const at = (number) => value.data[number];
    const present = cells.flat().map(at).filter((n) => n !== null);
    const [columns, rows] = [across().length, upwards().length];
    const room = ($("heat").clientWidth - 150) / columns;
    const words = (number) => (at(number) === null ? missing(number) : amount(value, at(number)));
    $("heat-title").textContent = value.title;
    $("heat-note").textContent = note(present, cells.flat());
    $("heat").style.height = `${Math.max(220, Math.min(720, 130 + 46 * rows))}px`;
    const scale = present.length ? colouring(present) : { of: () => null, low: 0, high: 1, ticks: [], size: (t) => t };
    const labels = room >= 74 && rows <= 24;
    const trace = {
      type: "heatmap", x: across(), y: upwards(), z: cells.map((row) => row.map((number) => scale.of(at(number)))),
      zmin: scale.low, zmax: scale.high > scale.low ? scale.high : scale.low + 1, xgap: 2, ygap: 2,
      colorscale: [[0, colour("heat-low")], [0.5, colour("heat-middle")], [1, colour("heat-high")]],
      text: cells.map((row) => row.map((number) => plain(words(number)))),
      customdata: cells.map((row) => row.map((number) => plain(detail(number)))),
      hovertemplate: "%{customdata}<extra></extra>", hoverongaps: true, ...(labels ? { texttemplate: "%{text}" } : {}),
      showscale: !narrow(),
      colorbar: { tickvals: scale.ticks, ticktext: scale.ticks.map((t) => amount(value, Math.round(scale.size(t)))), outlinewidth: 0, thickness: 14, tickfont: { color: colour("faint") } },
    };
    const shown = labels ? gaps(cells, at, room) : [];
    Plotly.react("heat", [trace], layout({
      hovermode: "closest", dragmode: false, margin: { l: 12, r: 14, t: 12, b: 8 }, annotations: shown,
      hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("ink") }, align: "left" },
      xaxis: { type: "category", title: { text: plain(data.axes[state.x].key) }, fixedrange: true, ticks: "", tickfont: { color: colour("ink") } },
      yaxis: { type: "category", title: { text: state.y < 0 ? "" : plain(data.axes[state.y].key) }, ticks: "", rangemode: "normal", tickfont: { color: colour("ink") } },
    }), CONFIG);
    listen();
    fillNumbers(cells, at);
    showChosen();
  }
  // A cell without a value says why it has none, as far as there is room.
  function gaps(cells, at, room) {
    return cells.flatMap((row, r) => row.map((number, c) => {
      if (at(number) !== null) return null;
      const words = missing(number);
      const most = Math.floor(room / 8);
      return { x: c, y: r, showarrow: false, text: plain(words.length > most ? `${words.slice(0, most - 1)}…` : words), font: { color: colour("bad"), size: 12 } };
    })).filter(Boolean);
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
  root.dataset.ready = "yes";
})();
