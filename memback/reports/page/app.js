"use strict";
(async () => {
  const data = await begin();
  if (!data) return;
  const text = (i) => data.strings[i];
  if (!data.runs.length) {
    root.dataset.ready = "yes";
    return;
  }
  $("app").hidden = false;

  // -- the state

  const state = {
    run: data.runs.find((run) => run.mode === "full") || data.runs[0],
    shown: new Set(data.runs),
    time: 0,
    range: null, // of the picture of buffers, in its own units; null is the whole step
    reps: [], // events that are drawn, in order
    marked: null,
    zoom: 0,
    sort: null,
    rows: 0,
    aliveRows: 0,
  };
  const ALIVE_AT_FIRST = 12;
  const ROWS_AT_ONCE = 500;

  // Time is counted in events. Forward is drawn from 0 to 1, what follows from 1 to 2.
  function x(run, time) {
    const f = run.forward_end;
    return time <= f ? time / Math.max(1, f) : 1 + (time - f) / Math.max(1, run.length - f);
  }
  function timeAt(run, at) {
    const f = run.forward_end;
    const time = at <= 1 ? at * f : f + (at - 1) * (run.length - f);
    return Math.max(0, Math.min(run.length - 1, Math.floor(time)));
  }

  // -- totals by category after each event, from the spans

  for (const run of data.runs) {
    run.totals = data.bands.map(() => new Float64Array(run.length + 1));
    const { buffer, band, start, end } = run.spans;
    for (let i = 0; i < buffer.length; i++) {
      const bytes = run.buffers.bytes[buffer[i]];
      run.totals[band[i]][start[i]] += bytes;
      run.totals[band[i]][end[i]] -= bytes;
    }
    run.live = new Float64Array(run.length + 1);
    for (const column of run.totals) {
      let now = 0;
      for (let t = 0; t <= run.length; t++) {
        now += column[t];
        column[t] = now;
        run.live[t] += now;
      }
    }
    run.byBand = data.bands.map((_, b) => band.map((_, i) => i).filter((i) => band[i] === b));
  }

  // Which events to draw between two: all, or of each of `most` stretches the highest, so that no peak is lost.
  function representatives(run, from, to, most) {
    const count = to - from + 1;
    if (count <= most) return Array.from({ length: count }, (_, i) => from + i);
    const chosen = [];
    for (let bin = 0; bin < most; bin++) {
      const first = from + Math.floor((bin * count) / most);
      const last = from + Math.floor(((bin + 1) * count) / most);
      let best = first;
      for (let t = first; t < last; t++) if (run.live[t] > run.live[best]) best = t;
      chosen.push(best);
    }
    return chosen;
  }

  function placeAt(run, time) {
    const { start, phase, path, op } = run.places;
    let low = 0;
    let high = start.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (start[middle] <= time) low = middle;
      else high = middle - 1;
    }
    const layer = text(path[low]);
    return `${text(phase[low])} of ${text(op[low])}${layer ? `, ${layer}` : ""}`;
  }

  // -- axes and labels of this page's plots

  function bytesAxis(most) {
    const unit = unitOf(most);
    return { unit: 1024 ** unit, title: { text: `live ${UNITS[unit]}`, standoff: 10 } };
  }
  function phaseAxis(runs, range) {
    const after = runs.some((run) => run.forward_end < run.length);
    return {
      range: range || [0, after ? 2 : 1], tickvals: after ? [0.5, 1.5] : [0.5],
      ticktext: after ? ["forward", "backward"] : ["forward"], ticks: "", showline: true,
    };
  }
  function divider() {
    return { type: "line", xref: "x", yref: "paper", x0: 1, x1: 1, y0: 0, y1: 1, line: { color: colour("faint"), width: 1, dash: "dot" } };
  }
  function label(at, height, words, options = {}) {
    const end = at > 1.4 ? "right" : at < 0.5 ? "left" : "center";
    return {
      x: at, y: height, text: words, showarrow: false, xanchor: end, yanchor: "bottom", yshift: 5, borderpad: 2,
      font: { color: colour("ink"), size: 12.5 }, bgcolor: faded(colour("card"), 0.6), ...options,
    };
  }

  // -- every mode over one another

  function drawOver() {
    const runs = data.runs.filter((run) => state.shown.has(run) && run.length);
    const most = Math.max(1, ...runs.map((run) => Math.max(run.peak_bytes, run.live.reduce((a, b) => Math.max(a, b), 0))));
    const axis = bytesAxis(most);
    const traces = [];
    const annotations = [];
    for (const run of runs) {
      const reps = representatives(run, 0, run.length - 1, 1200);
      const hue = colour(run.mode);
      traces.push({
        type: "scatter", mode: "lines", name: plain(run.label), fill: "tozeroy", fillcolor: faded(hue, 0.09), hoverinfo: "skip",
        x: [...reps.map((t) => x(run, t)), x(run, run.length)], y: [...reps.map((t) => run.live[t] / axis.unit), 0],
        line: { color: hue, width: 2, shape: "hv" },
      });
      if (!run.peak) continue;
      const at = x(run, run.peak.time);
      const height = run.peak_bytes / axis.unit;
      traces.push({
        type: "scatter", mode: "lines+markers", hoverinfo: "skip", x: [at, at], y: [run.live[run.peak.time] / axis.unit, height],
        line: { color: hue, width: 2, dash: "dot" }, marker: { color: hue, size: [0, 9], symbol: "diamond" },
      });
      annotations.push(label(at, height, `${plain(run.label)} ${short(run.peak_bytes)}`, { font: { color: hue, size: 12.5 } }));
    }
    spread(annotations, (most / axis.unit) * (narrow() ? 0.075 : 0.06));
    Plotly.react("over", traces, layout({
      xaxis: { ...phaseAxis(runs, null), fixedrange: true }, yaxis: { title: axis.title, range: [0, (most / axis.unit) * 1.14] },
      shapes: [divider()], annotations, dragmode: false,
    }), CONFIG);
  }
  // Labels side by side at about the same height are put one above the other.
  function spread(annotations, step, near = narrow() ? 1.2 : 0.6) {
    const order = [...annotations].sort((a, b) => a.y - b.y);
    for (let i = 1; i < order.length; i++)
      for (let j = 0; j < i; j++)
        if (Math.abs(order[i].x - order[j].x) < near && Math.abs(order[i].y - order[j].y) < step)
          order[i].y = order[j].y + step;
  }

  // -- every buffer of a mode

  // Where a span lies from event to event: on all of the categories below, and on the older buffers of its own.
  function bases(run, span, reps) {
    const band = run.spans.band[span];
    const { start, end, buffer } = run.spans;
    const older = [];
    for (const other of run.byBand[band]) {
      if (other >= span) break;
      if (end[other] > start[span]) older.push(other);
    }
    older.sort((a, b) => end[a] - end[b]);
    let own = older.reduce((sum, other) => sum + run.buffers.bytes[buffer[other]], 0);
    let next = 0;
    const found = [];
    for (const t of reps) {
      if (t < start[span] || t >= end[span]) continue;
      while (next < older.length && end[older[next]] <= t) own -= run.buffers.bytes[buffer[older[next++]]];
      let below = 0;
      for (let b = 0; b < band; b++) below += run.totals[b][t];
      found.push([t, below + own]);
    }
    return found;
  }

  // The right end of what is drawn for a representative: where the next one begins.
  const nextOf = (run, reps, i) => (i + 1 < reps.length ? reps[i + 1] : state.last + 1);

  function outlines(run, reps, unit, least) {
    const xs = [];
    const ys = [];
    let points = 0;
    const index = new Map(reps.map((t, i) => [t, i]));
    for (let span = 0; span < run.spans.buffer.length && points < 60000; span++) {
      const bytes = run.buffers.bytes[run.spans.buffer[span]];
      if (bytes < least || run.spans.end[span] <= reps[0] || run.spans.start[span] > reps[reps.length - 1]) continue;
      let height = null;
      const lie = bases(run, span, reps);
      lie.forEach(([t, base], i) => {
        const top = (base + bytes) / unit;
        if (top !== height || i === lie.length - 1) {
          if (height !== null) { xs.push(x(run, t)); ys.push(height); }
          xs.push(x(run, t));
          ys.push(top);
          height = top;
          points += 2;
        }
      });
      if (!lie.length) continue;
      xs.push(x(run, nextOf(run, reps, index.get(lie[lie.length - 1][0]))), null);
      ys.push(height, null);
    }
    return { type: "scatter", mode: "lines", hoverinfo: "skip", x: xs, y: ys, connectgaps: false, line: { color: faded(colour("card"), 0.75), width: 1, simplify: false } };
  }

  function drawTime() {
    const run = state.run;
    if (!run.length) { Plotly.purge("time"); return; }
    const whole = [0, x(run, run.length)];
    const range = state.range || whole;
    const first = timeAt(run, range[0]);
    state.last = timeAt(run, range[1]);
    const reps = representatives(run, first, state.last, narrow() ? 500 : 1100);
    state.reps = reps;
    let most = run.live.slice(first, state.last + 1).reduce((a, b) => Math.max(a, b), 1);
    const peakIn = run.peak && run.peak.time >= first && run.peak.time <= state.last;
    if (peakIn) most = Math.max(most, run.peak_bytes);
    const axis = bytesAxis(most);
    state.unit = axis.unit;
    const xs = [...reps.map((t) => x(run, t)), x(run, state.last + 1)];
    const traces = data.bands.map((band, b) => ({
      type: "scatter", mode: "lines", name: band, stackgroup: "live", hoverinfo: "skip", x: xs,
      y: [...reps, reps[reps.length - 1]].map((t) => run.totals[b][t] / axis.unit),
      line: { width: 0, shape: "hv", color: colour(band) }, fillcolor: colour(band),
    })).filter((trace) => trace.y.some((n) => n > 0));
    const height = narrow() ? 300 : 380;
    traces.push(outlines(run, reps, axis.unit, (most / height) * 2.5));
    const annotations = [];
    if (peakIn) {
      const at = x(run, run.peak.time);
      traces.push({
        type: "scatter", mode: "lines+markers", hoverinfo: "skip", x: [at, at],
        y: [run.live[run.peak.time] / axis.unit, run.peak_bytes / axis.unit],
        line: { color: colour("workspace"), width: 3 }, marker: { color: colour("workspace"), size: [0, 10], symbol: "diamond" },
      });
      annotations.push(label(at, run.peak_bytes / axis.unit, `peak ${short(run.peak_bytes)}`));
    }
    Plotly.react("time", traces, layout({
      xaxis: phaseAxis([run], range), yaxis: { title: axis.title, range: [0, (most / axis.unit) * 1.12] },
      shapes: [divider()], annotations,
    }), CONFIG);
    const step = reps.length < state.last - first + 1;
    $("time-note").textContent =
      `A band is a buffer, from allocation to release; ${run.told ? "its colour is its category" : "this report has no categories"}. ` +
      "Hover over one for details, click a moment to list what is alive then, drag over a stretch to zoom in. " +
      (step ? `${group(state.last - first + 1)} events are drawn as ${group(reps.length)} columns, each with its highest moment; zoom in for every one. ` : "") +
      `Buffers too small to see at this scale have no outline; there are ${group(run.buffers.bytes.length)} in all. ` +
      "Workspace exists inside an op, between two events: a report has it for the peak only, where the mark is above the bands.";
    mark(null);
  }

  function geometry() {
    const full = $("time")._fullLayout;
    if (!full || !full.xaxis) return null;
    const { xaxis, yaxis } = full;
    return {
      left: xaxis._offset, top: yaxis._offset, width: xaxis._length, height: yaxis._length,
      px: (run, t) => xaxis._offset + xaxis.c2p(x(run, t)), py: (bytes) => yaxis._offset + yaxis.c2p(bytes / state.unit),
      at: (px) => xaxis.p2c(px - xaxis._offset), bytes: (py) => yaxis.p2c(py - yaxis._offset) * state.unit,
    };
  }

  // The event and the span at a point of the picture.
  function hit(px, py) {
    const g = geometry();
    if (!g || px < g.left || px > g.left + g.width || py < g.top || py > g.top + g.height) return null;
    const run = state.run;
    const wanted = timeAt(run, g.at(px));
    let i = state.reps.length - 1;
    while (i > 0 && state.reps[i] > wanted) i--;
    const time = state.reps[i];
    return { time, span: spanAt(run, time, g.bytes(py)) };
  }
  function spanAt(run, time, bytes) {
    let floor = 0;
    for (let b = 0; b < data.bands.length; b++) {
      if (bytes >= floor + run.totals[b][time]) { floor += run.totals[b][time]; continue; }
      for (const span of run.byBand[b]) {
        if (run.spans.start[span] > time) break;
        if (run.spans.end[span] <= time) continue;
        floor += run.buffers.bytes[run.spans.buffer[span]];
        if (bytes < floor) return span;
      }
      return null;
    }
    return null;
  }

  const NS = "http://www.w3.org/2000/svg";
  function mark(found) {
    let svg = document.querySelector(".mark");
    if (!svg) {
      svg = document.createElementNS(NS, "svg");
      svg.setAttribute("class", "mark");
      svg.setAttribute("aria-hidden", "true");
      document.querySelector(".stage").append(svg);
    }
    svg.replaceChildren();
    const g = geometry();
    if (!g) return;
    const run = state.run;
    if (state.time >= state.reps[0] && state.time <= state.last) {
      const line = document.createElementNS(NS, "line");
      const at = g.px(run, state.time);
      for (const [name, value] of [["x1", at], ["x2", at], ["y1", g.top], ["y2", g.top + g.height]]) line.setAttribute(name, value);
      svg.append(line);
    }
    if (!found || found.span === null) return;
    const bytes = run.buffers.bytes[run.spans.buffer[found.span]];
    const lie = bases(run, found.span, state.reps);
    const index = new Map(state.reps.map((t, i) => [t, i]));
    const upper = [];
    const lower = [];
    for (const [t, base] of lie) {
      const from = g.px(run, t);
      const to = g.px(run, nextOf(run, state.reps, index.get(t)));
      upper.push(`${from},${g.py(base + bytes)}`, `${to},${g.py(base + bytes)}`);
      lower.push(`${from},${g.py(base)}`, `${to},${g.py(base)}`);
    }
    const path = document.createElementNS(NS, "path");
    path.setAttribute("d", `M${[...upper, ...lower.reverse()].join("L")}Z`);
    svg.append(path);
  }

  function tell(found, event) {
    const tip = $("tip");
    tip.hidden = !found;
    if (!found) return;
    const run = state.run;
    tip.replaceChildren();
    if (found.span === null) {
      tip.append(make("b", {}, short(run.live[found.time])), make("span", {}, `alive in the ${placeAt(run, found.time)}`));
    } else {
      const i = run.spans.buffer[found.span];
      const b = run.buffers;
      const band = data.bands[run.spans.band[found.span]];
      tip.append(
        make("b", { class: "origin" }, text(b.origin[i])),
        make("span", { class: "band" }, make("i", { class: `swatch ${band}` }), `${band}, ${exact(b.bytes[i])} (${short(b.bytes[i])})`),
        make("span", { class: "layer" }, `layer ${text(b.path[i]) || "(top)"}`),
        make("span", { class: "source" }, text(b.source[i]) ? `line ${text(b.source[i])}` : "line not known"),
        make("span", { class: "birth" }, `born at ${group(b.birth[i])}: ${placeAt(run, b.birth[i])}`),
        make("span", { class: "death" }, death(run, i)),
      );
    }
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(8, Math.min(innerWidth - box.width - 8, event.clientX + 16))}px`;
    tip.style.top = `${event.clientY + box.height + 26 > innerHeight ? Math.max(8, event.clientY - box.height - 14) : event.clientY + 18}px`;
  }
  function death(run, i) {
    const at = run.buffers.death[i];
    return at >= run.length ? "outlives the step" : `dies at ${group(at)}: ${placeAt(run, at)}`;
  }

  function within(event) {
    const box = $("time").getBoundingClientRect();
    return hit(event.clientX - box.left, event.clientY - box.top);
  }
  const stage = document.querySelector(".stage");
  stage.addEventListener("pointermove", (event) => {
    const found = event.buttons && event.pointerType === "mouse" ? null : within(event);
    mark(found);
    tell(found, event);
  });
  stage.addEventListener("pointerleave", () => { mark(null); tell(null); });
  let pressed = null;
  stage.addEventListener("pointerdown", (event) => { pressed = [event.clientX, event.clientY]; }, true);
  addEventListener("pointerup", (event) => {
    if (!pressed) return;
    const still = Math.hypot(event.clientX - pressed[0], event.clientY - pressed[1]) < 4;
    pressed = null;
    const found = still ? within(event) : null;
    if (!found) return;
    setMoment(found.time);
    mark(found);
    tell(found, event);
  }, true);
  addEventListener("scroll", () => tell(null), { passive: true });

  // -- everything alive at a moment

  function setMoment(time) {
    state.time = Math.max(0, Math.min(state.run.length - 1, time));
    state.aliveRows = ALIVE_AT_FIRST;
    $("moment").value = state.time;
    showAlive();
    mark(null);
  }

  function showAlive() {
    const run = state.run;
    const body = $("alive").tBodies[0];
    const foot = $("alive").tFoot;
    body.replaceChildren();
    foot.replaceChildren();
    if (!run.length) { $("alive-title").textContent = "This report has no timeline of this mode."; $("alive-more").hidden = true; return; }
    const time = state.time;
    const place = placeAt(run, time);
    const peak = run.peak && run.peak.time === time ? run.peak : null;
    const { buffer, start, end, band } = run.spans;
    const alive = [];
    for (let i = 0; i < buffer.length && start[i] <= time; i++) if (end[i] > time) alive.push(i);
    alive.sort((a, b) => run.buffers.bytes[buffer[b]] - run.buffers.bytes[buffer[a]]);
    const total = peak ? run.peak_bytes : run.live[time];
    $("alive-title").textContent = peak
      ? `The peak, ${exact(total)} (${short(total)}): ${run.place}`
      : `Alive after event ${group(time)} of ${group(run.length - 1)}, ${exact(total)} (${short(total)}): ${place}`;
    $("moment").setAttribute("aria-valuetext", `event ${time}: ${place}, ${short(total)}`);
    for (const i of alive.slice(0, state.aliveRows)) {
      const b = buffer[i];
      const name = make("th", { scope: "row", class: "name" }, make("span", { class: `swatch ${data.bands[band[i]]}` }), text(run.buffers.origin[b]));
      name.append(make("small", {}, ` ${data.bands[band[i]]}`));
      body.append(make("tr", {}, name, make("td", { class: "number" }, group(run.buffers.bytes[b])),
        make("td", { class: "name" }, text(run.buffers.path[b]) || "(top)"), make("td", { class: "name" }, text(run.buffers.source[b]) || "–"),
        make("td", { class: "number" }, group(run.buffers.birth[b])),
        make("td", { class: "number" }, run.buffers.death[b] >= run.length ? "–" : group(run.buffers.death[b]))));
    }
    const rest = alive.slice(state.aliveRows);
    if (rest.length) body.append(sumRow("", `${group(rest.length)} smaller buffers`, rest.reduce((sum, i) => sum + run.buffers.bytes[buffer[i]], 0)));
    if (peak) {
      for (const [name, size] of Object.entries(peak.unplaced))
        body.append(sumRow(name, size > 0 ? `${name}, being made in this op` : `${name}, gone by then`, size));
      if (peak.parts.workspace) body.append(sumRow("workspace", "workspace: temporaries inside the op", peak.parts.workspace));
    }
    foot.append(sumRow("", "total", total));
    $("alive-more").hidden = !rest.length;
    $("alive-more").textContent = `Show ${group(Math.min(rest.length, 200))} more`;
  }
  function sumRow(band, words, size) {
    const name = make("th", { scope: "row", class: "name" });
    if (band) name.append(make("span", { class: `swatch ${band}` }));
    name.append(words);
    return make("tr", {}, name, make("td", { class: "number" }, group(size)), make("td"), make("td"), make("td"), make("td"));
  }
  $("alive-more").addEventListener("click", () => { state.aliveRows += 200; showAlive(); });
  $("moment").addEventListener("input", () => setMoment(+$("moment").value));
  $("to-peak").addEventListener("click", () => { if (state.run.peak) setMoment(state.run.peak.time); });
  $("unzoom").addEventListener("click", () => { state.range = null; draw("time"); });

  // -- who keeps it

  const HUES = ["#3568d4", "#0f8373", "#f0a15c", "#7d6bd6", "#c43a72", "#7cc4e8", "#a9c45b", "#a4553a", "#c9b8f5", "#8a6d1f"];
  const OTHER = "#7d8798";
  const INK_ON = { "#f0a15c": "#16202e", "#7cc4e8": "#16202e", "#a9c45b": "#16202e", "#c9b8f5": "#16202e" };
  const percent = (part, whole) => `${((100 * part) / whole).toFixed(1)} %`;
  // By all runs, so that an op has the same colour in every mode.
  const rank = (() => {
    const sizes = new Map();
    for (const run of data.runs)
      for (const layer of run.layers) sizes.set(layer[1], (sizes.get(layer[1]) || 0) + layer[5]);
    return new Map([...sizes.keys()].sort((a, b) => sizes.get(b) - sizes.get(a)).map((op, i) => [op, i]));
  })();
  const opHues = new Map([...rank].map(([op, i]) => [op, HUES[i] || OTHER]));

  // A module has the colour of the op that keeps the most below it.
  function prepareTree(run) {
    const t = run.tree;
    t.children = t.parent.map(() => []);
    t.depth = [];
    t.parent.forEach((parent, i) => {
      t.depth[i] = parent < 0 ? 0 : t.depth[parent] + 1;
      if (parent >= 0) t.children[parent].push(i);
    });
    t.main = t.op.slice();
    const kept = t.parent.map(() => new Map());
    for (let i = t.parent.length - 1; i > 0; i--) {
      if (text(t.op[i]) && !(text(t.op[t.parent[i]]))) kept[i].set(t.op[i], t.bytes[i]);
      if (!text(t.op[i])) t.main[i] = [...kept[i]].reduce((a, b) => (b[1] > a[1] ? b : a), [0, -1])[0];
      for (const [op, bytes] of kept[i]) kept[t.parent[i]].set(op, (kept[t.parent[i]].get(op) || 0) + bytes);
    }
  }
  // What is drawn below a node: parts are opened where there is room for their titles, which would make areas untrue; the
  // rest is there to zoom into.
  const TILE_AT_LEAST = 400;
  const MODULE_AT_LEAST = 9000;
  function visible(t, top) {
    const scale = ($("map").clientWidth * $("map").clientHeight) / t.bytes[top];
    const opens = (area, parts) => area > MODULE_AT_LEAST && area / (parts + 1) > TILE_AT_LEAST;
    const shown = [];
    for (let level = [top]; level.length; ) {
      shown.push(...level);
      level = level.flatMap((i) => (i === top || opens(t.bytes[i] * scale, t.children[i].length) ? t.children[i] : []));
    }
    return shown;
  }

  function drawMap() {
    const run = state.run;
    const t = run.tree;
    if (!t.children) prepareTree(run);
    const empty = !run.saved_bytes;
    $("map").hidden = empty;
    document.querySelector(".zoom").hidden = empty;
    $("map-note").textContent = empty ? `${run.label} saves nothing.` : "";
    if (empty) { Plotly.purge("map"); return; }
    const nodes = visible(t, state.zoom);
    const drawn = new Set(nodes);
    for (let i = t.parent[state.zoom]; i >= 0; i = t.parent[i]) nodes.push(i);
    const leaf = (i) => !t.children[i].some((child) => drawn.has(child));
    const hue = (i) => opHues.get(t.main[i]) || OTHER;
    Plotly.react("map", [{
      type: "treemap", ids: nodes.map((i) => `n${i}`), labels: nodes.map((i) => plain(text(t.name[i]))),
      parents: nodes.map((i) => (t.parent[i] < 0 ? "" : `n${t.parent[i]}`)), values: nodes.map((i) => t.bytes[i]),
      branchvalues: "total", level: `n${state.zoom}`, sort: true, tiling: { pad: 2, packing: "squarify" },
      marker: {
        colors: nodes.map((i) => (leaf(i) ? hue(i) : colour("soft"))), line: { width: 1, color: colour("card") }, cornerradius: 3,
        pad: { t: 17, l: 2, r: 2, b: 2 },
      },
      text: nodes.map((i) => short(t.bytes[i])), texttemplate: "%{label}<br>%{text}",
      textfont: { size: 12, color: nodes.map((i) => (leaf(i) ? INK_ON[hue(i)] || "#ffffff" : colour("ink"))) },
      customdata: nodes.map((i) => [group(t.bytes[i]), percent(t.bytes[i], run.saved_bytes), text(t.note[i]) ? `<br>${plain(text(t.note[i]))}` : ""]),
      hovertemplate: "<b>%{label}</b><br>%{customdata[0]} B, %{customdata[1]} of the mode%{customdata[2]}<extra></extra>",
      hoverlabel: { align: "left", bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("ink"), size: 13 } },
      pathbar: { thickness: 26, textfont: { size: 13, color: colour("ink") } },
    }], layout({ hovermode: "closest", margin: { l: 0, r: 0, t: 30, b: 0 } }), CONFIG);
    if (!$("map").dataset.listens) {
      $("map").on("plotly_treemapclick", (event) => {
        zoomTo(+event.points[0].id.slice(1));
        return false;
      });
      $("map").dataset.listens = "yes";
    }
    legendOfOps(t);
  }
  function zoomTo(node) {
    const t = state.run.tree;
    const up = node === state.zoom ? Math.max(0, t.parent[node]) : node;
    if (!t.children[up].length) return;
    state.zoom = up;
    $("zoom").value = state.zoom;
    drawMap();
  }
  function legendOfOps(t) {
    const ops = [...new Set(t.op.filter((op) => text(op)))].sort((a, b) => rank.get(a) - rank.get(b));
    $("map-note").textContent = "Colours are ops; a module drawn as a whole has the colour of the op that keeps the most in it. ";
    const list = $("map-ops");
    list.replaceChildren(...ops.map((op) => {
      const swatch = make("span", { class: "swatch" });
      swatch.style.background = opHues.get(op) || OTHER;
      return make("li", {}, swatch, text(op));
    }));
  }
  function fillZoom() {
    const t = state.run.tree;
    const names = [];
    $("zoom").replaceChildren();
    t.parent.forEach((parent, i) => {
      names[i] = parent > 0 ? `${names[parent]}.${text(t.name[i])}` : text(t.name[i]);
      if (t.op[i] && text(t.op[i])) return; // ops and buffers are chosen in the picture
      $("zoom").append(make("option", { value: i }, `${i ? names[i] : `all of ${names[i]}`}: ${short(t.bytes[i])}`));
    });
    state.zoom = 0;
  }
  $("zoom").addEventListener("change", () => { state.zoom = +$("zoom").value; drawMap(); });

  // -- the layers

  const COLUMNS = [
    { title: "layer", key: (r) => r.path, cell: (r) => r.path },
    { title: "op", key: (r) => r.op, cell: (r) => r.op },
    { title: "saved bytes", number: true, key: (r) => r.saved, cell: (r) => group(r.saved), sum: (rows) => group(total(rows, "saved")) },
    { title: "shared bytes", number: true, key: (r) => r.shared, cell: (r) => group(r.shared) },
    { title: "parameter bytes", number: true, key: (r) => r.parameters, cell: (r) => group(r.parameters) },
    { title: "calls", number: true, key: (r) => r.calls, cell: (r) => group(r.calls) },
    { title: "output", key: (r) => r.shape, cell: (r) => r.shape },
    { title: "FLOPs", number: true, key: (r) => r.flops, cell: (r) => (r.flops ? flops(r.flops) : "0"), sum: (rows) => flops(total(rows, "flops")) },
    { title: "time", number: true, key: (r) => r.seconds || 0, cell: (r) => (r.seconds === null ? "–" : seconds(r.seconds)) },
  ];
  const total = (rows, name) => rows.reduce((sum, row) => sum + row[name], 0);
  const timed = () => state.run.layers.some((layer) => layer[9] !== null);
  const columns = () => COLUMNS.filter((column) => column.title !== "time" || timed());

  function allRows(run) {
    const folds = $("fold").checked ? run.folds : run.layers.map((layer, i) => [text(layer[0]), [i]]);
    return folds.map(([path, numbers], order) => {
      const layers = numbers.map((i) => run.layers[i]);
      const first = layers[0];
      const sum = (i) => layers.reduce((n, layer) => n + layer[i], 0);
      return {
        order, layers, path: (path || "(top)") + (first[10] ? " *" : ""), op: text(first[1]), calls: sum(3), shape: text(first[4]),
        saved: sum(5), shared: sum(6), parameters: sum(7), flops: sum(8), seconds: first[9] === null ? null : sum(9),
      };
    });
  }
  function chosenRows() {
    const wanted = $("filter").value.trim().toLowerCase();
    const holds = (row) => [row.path, row.op, ...row.layers.flatMap((l) => [text(l[0]), ...l[11].flatMap((v) => [text(v[0]), text(v[2])])])]
      .some((words) => words.toLowerCase().includes(wanted));
    const rows = allRows(state.run).filter((row) => !wanted || holds(row));
    if (state.sort) {
      const { key } = state.sort.column;
      const sign = state.sort.down ? -1 : 1;
      rows.sort((a, b) => {
        const [p, q] = [key(a), key(b)];
        const order = typeof p === "number" ? p - q : p.localeCompare(q, "en", { numeric: true });
        return sign * order || a.order - b.order;
      });
    }
    return rows;
  }
  function drawLayers() {
    const table = $("layers");
    const rows = chosenRows();
    const all = state.run.layers.length;
    table.tHead.rows[0].replaceChildren(...columns().map((column) => {
      const sorted = state.sort && state.sort.column === column;
      return make("th", { scope: "col", class: column.number ? "number" : "", "aria-sort": sorted ? (state.sort.down ? "descending" : "ascending") : null },
        make("button", { type: "button", onclick: () => sortBy(column) }, column.title));
    }));
    const most = Math.max(1, ...rows.map((row) => row.saved));
    table.tBodies[0].replaceChildren(...rows.slice(0, state.rows).map((row) => layerRow(row, most)));
    table.tFoot.replaceChildren(make("tr", {}, ...columns().map((column, i) => i === 0
      ? make("th", { scope: "row" }, "total") : make("td", { class: column.number ? "number" : "" }, column.sum ? column.sum(rows) : ""))));
    const calls = rows.reduce((n, row) => n + row.layers.length, 0);
    $("count").textContent = `${group(rows.length)} rows, ${group(calls)} of ${group(all)} layers`;
    $("rows-more").hidden = rows.length <= state.rows;
    $("rows-more").textContent = `Show ${group(Math.min(ROWS_AT_ONCE, rows.length - state.rows))} more of ${group(rows.length - state.rows)}`;
  }
  function sortBy(column) {
    const again = state.sort && state.sort.column === column;
    const down = again ? !state.sort.down : Boolean(column.number);
    state.sort = again && down === Boolean(column.number) ? null : { column, down };
    drawLayers();
    const place = columns().indexOf(column);
    $("layers").tHead.rows[0].cells[place].firstChild.focus();
  }
  function layerRow(row, most) {
    const saves = row.layers[0][11].length > 0;
    const cells = columns().map((column, i) => {
      const words = column.cell(row);
      if (i === 0) return make("th", { scope: "row", class: "name" }, saves ? opener(row, words) : words);
      const cell = make("td", { class: `${column.number ? "number" : "text"}${words === "0" ? " faint" : ""}${column.title === "saved bytes" ? " share" : ""}` }, words);
      if (column.title === "saved bytes" && row.saved) {
        const bar = make("i", { "aria-hidden": "true" });
        bar.style.width = `${(100 * row.saved) / most}%`;
        cell.append(bar);
      }
      return cell;
    });
    return make("tr", {}, ...cells);
  }
  function opener(row, words) {
    const button = make("button", { type: "button", "aria-expanded": "false" }, words);
    button.addEventListener("click", () => {
      const line = button.closest("tr");
      const open = button.getAttribute("aria-expanded") === "true";
      button.setAttribute("aria-expanded", String(!open));
      if (open) { line.nextSibling.remove(); return; }
      const list = make("ul");
      for (const [name, bytes, origin, source] of row.layers[0][11])
        list.append(make("li", {}, make("code", {}, text(name)), ` ${exact(bytes)}: ${text(origin)}${text(source) ? `, ${text(source)}` : ""}`));
      const more = row.layers.length > 1 ? [make("p", { class: "note" }, `The first of ${group(row.layers.length)} identical layers saves:`)] : [];
      line.after(make("tr", { class: "detail" }, make("td", { colspan: columns().length }, ...more, list)));
    });
    return button;
  }
  function csv() {
    const quote = (value) => (/[",\n\r]/.test(value) ? `"${value.replace(/"/g, '""')}"` : value);
    // A spreadsheet takes what begins like this for a formula.
    const inert = (value) => (/^[=+\-@\t\r]/.test(value) ? `'${value}` : value);
    const head = ["mode", "layer", "op", "calls", "output", "saved_bytes", "shared_bytes", "parameter_bytes", "flops", "seconds"];
    const lines = chosenRows().map((r) => [
      inert(state.run.label), inert(r.path.replace(/ \*$/, "")), inert(r.op), r.calls, inert(r.shape), r.saved, r.shared, r.parameters, r.flops, r.seconds === null ? "" : r.seconds,
    ]);
    return [head, ...lines].map((line) => line.map((value) => quote(String(value))).join(",")).join("\n") + "\n";
  }
  $("csv").addEventListener("click", () => {
    const url = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
    const link = make("a", { href: url, download: `${data.name}-${state.run.label}-layers.csv`.replace(/[^\w.-]+/g, "-") });
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  });
  $("filter").addEventListener("input", () => { state.rows = ROWS_AT_ONCE; drawLayers(); });
  $("fold").addEventListener("change", () => { state.rows = ROWS_AT_ONCE; drawLayers(); });
  $("rows-more").addEventListener("click", () => { state.rows += ROWS_AT_ONCE; drawLayers(); });

  // -- plans

  const points = data.frontier.map(([peak, cost], i) => ({ peak, cost, knee: i === data.knee })).sort((a, b) => a.peak - b.peak);
  const forward = Math.max(1, data.runs[0].flops);
  const share = (cost) => `${((100 * cost) / forward).toFixed(1)} %`;

  function drawFrontier() {
    if (!points.length) return;
    const marked = data.runs.filter((run) => run.mode === "full" || run.mode === "checkpoint");
    const peaks = [...points.map((p) => p.peak), ...marked.map((run) => run.peak_bytes)];
    const most = Math.max(...peaks);
    const least = Math.min(...peaks);
    const unit = 1024 ** unitOf(most);
    const highest = (100 * Math.max(1, ...points.map((p) => p.cost), ...marked.map((run) => run.recomputed_flops))) / forward;
    const margin = Math.max((most - least) * 0.05, most * 0.001) / unit;
    const traces = [{
      type: "scatter", mode: "lines+markers", x: points.map((p) => p.peak / unit), y: points.map((p) => (100 * p.cost) / forward),
      line: { color: colour("faint"), shape: "hv", width: 2 }, marker: { size: points.map((p) => (p.knee ? 11 : 7)), color: colour("faint"), line: { width: 0 } },
      text: points.map((p) => `${p.knee ? "the knee: " : ""}peak ${exact(p.peak)} (${short(p.peak)})<br>${share(p.cost)} of a forward pass recomputed (${flops(p.cost)})`),
      hovertemplate: "%{text}<extra></extra>",
    }];
    const annotations = [];
    for (const run of marked) {
      const hue = colour(run.mode);
      const [at, height] = [run.peak_bytes / unit, (100 * run.recomputed_flops) / forward];
      traces.push({
        type: "scatter", mode: "markers", x: [at], y: [height], marker: { color: hue, size: 13, symbol: "diamond", line: { color: colour("card"), width: 1.5 } },
        text: [`${plain(run.label)}: peak ${exact(run.peak_bytes)} (${short(run.peak_bytes)})<br>${share(run.recomputed_flops)} of a forward pass recomputed`],
        hovertemplate: "%{text}<extra></extra>",
      });
      const right = (run.peak_bytes - least) / Math.max(1, most - least) > 0.7;
      const words = narrow() ? plain(run.label.replace(/^checkpoint:/, "")) : `${plain(run.label)} ${short(run.peak_bytes)}, ${share(run.recomputed_flops)}`;
      annotations.push(label(at, height, words, { font: { color: hue, size: 12.5 }, xanchor: right ? "right" : "left", yshift: 9 }));
    }
    spread(annotations, highest * (narrow() ? 0.1 : 0.075), ((most - least) / unit) * 0.5);
    Plotly.react("frontier", traces, layout({
      hovermode: "closest", dragmode: false, annotations,
      xaxis: { title: { text: `peak above the arguments, ${UNITS[unitOf(most)]}`, standoff: 8 }, fixedrange: true, showline: true, ticks: "outside", range: [least / unit - margin, most / unit + margin] },
      yaxis: { title: { text: narrow() ? "recomputed, %" : "recomputed, % of a forward pass", standoff: 10 }, range: [-highest * 0.03, highest * 1.15], zeroline: true },
    }), CONFIG);
  }

  function fillFrontier() {
    const all = points[points.length - 1].peak;
    const knee = points.find((p) => p.knee);
    $("frontier-note").textContent =
      `From ${short(points[0].peak)}, recomputing ${share(points[0].cost)} of a forward pass, to ${short(all)}, recomputing ` +
      `${share(points[points.length - 1].cost)}. The knee, where less memory begins to cost much more, is at ${short(knee.peak)} and ${share(knee.cost)}.`;
    const number = (content) => make("td", { class: "number" }, content);
    $("frontier-table").tBodies[0].replaceChildren(...points.map((p) =>
      make("tr", {}, number(group(p.peak)), number(percent(p.peak, all)), number(group(p.cost)), number(share(p.cost)), make("td", {}, p.knee ? "knee" : ""))));
  }

  // -- drawing what is looked at

  const drawers = { over: drawOver, time: drawTime, map: drawMap, frontier: drawFrontier };
  const near = new Set();
  const stale = new Set();
  function draw(...names) {
    for (const name of names) {
      stale.add(name);
      if (near.has(name)) drawNow(name);
    }
  }
  function drawNow(name) {
    if (!window.Plotly || !stale.delete(name)) return;
    drawers[name]();
    if (name === "time") listenToZoom();
  }
  function drawAll() {
    for (const name of [...stale]) drawNow(name);
  }
  const watcher = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const name = target.dataset.draws;
      if (isIntersecting) { near.add(name); drawNow(name); } else near.delete(name);
    }
  }, { rootMargin: "400px" });
  for (const name of Object.keys(drawers)) {
    const section = $(name).closest("section");
    section.dataset.draws = name;
    watcher.observe(section);
  }
  function listenToZoom() {
    if ($("time").dataset.listens || !$("time").on) return;
    $("time").dataset.listens = "yes";
    $("time").on("plotly_relayout", (event) => {
      const from = event["xaxis.range[0]"];
      const to = event["xaxis.range[1]"];
      if (from === undefined || to === undefined) return;
      state.range = [Math.max(0, from), Math.min(x(state.run, state.run.length), to)];
      drawTime();
    });
  }

  // -- choosing a mode

  function choose(run) {
    state.run = run;
    state.range = null;
    state.rows = ROWS_AT_ONCE;
    for (const element of document.querySelectorAll(".mode")) element.textContent = run.label;
    for (const chip of $("picker").children) {
      const chosen = chip.run === run;
      chip.setAttribute("aria-checked", String(chosen));
      chip.tabIndex = chosen ? 0 : -1;
    }
    $("moment").max = Math.max(0, run.length - 1);
    const used = data.bands.filter((_, b) => run.totals[b].some((n) => n > 0));
    $("bands").replaceChildren(...[...used, "workspace"].map((band) => make("li", {}, make("span", { class: `swatch ${band}` }), band)));
    fillZoom();
    setMoment(run.peak ? run.peak.time : 0);
    drawLayers();
    draw("time", "map");
  }
  for (const run of data.runs) {
    const chip = make("button", { type: "button", role: "radio", class: `chip ${run.mode}`, onclick: () => choose(run) }, run.label);
    chip.run = run;
    $("picker").append(chip);
    const toggle = make("button", { type: "button", class: `chip ${run.mode}`, "aria-pressed": "true" }, run.label);
    toggle.addEventListener("click", () => {
      const on = !state.shown.has(run);
      if (on) state.shown.add(run);
      else state.shown.delete(run);
      toggle.setAttribute("aria-pressed", String(on));
      draw("over");
    });
    $("shown").append(toggle);
  }
  $("picker").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const n = data.runs.length;
    choose(data.runs[(data.runs.indexOf(state.run) + step + n) % n]);
    $("picker").children[data.runs.indexOf(state.run)].focus();
  });

  followLooks(() => draw(...Object.keys(drawers)), drawAll);

  if (data.frontier.length) {
    $("frontier-section").hidden = false;
    fillFrontier();
  }
  choose(state.run);
  draw("over", "frontier");

  if (await startPlotly()) for (const name of near) drawNow(name);
  root.dataset.ready = "yes";
})();
