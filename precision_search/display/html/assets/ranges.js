// Activation ranges: each node a point in the order of flow, blocks side by side, with the limits of the low dtype.

const VALUES = {
  largest: "the largest of all that must fit",
  input: "inputs",
  output: "result",
  inside: "inside the kernel (the sum of a mean)",
};

function magnitude(node, what) {
  if (what !== "largest") return node[what];
  const known = [node.input, node.output, node.inside];
  return known.includes(null) ? null : Math.max(...known);
}

// Nodes grouped into blocks: what comes before the layers, each layer, what comes after, for each family.
function flow() {
  const blocks = [];
  let order = 0;
  for (const family of ["encoder", "decoder"]) {
    const indices = [...page.nodes.keys()].filter((index) => page.roles[page.nodes[index].role].family === family);
    const first = indices.findIndex((index) => page.nodes[index].layer !== null);
    const block = (index, place) => page.nodes[index].layer ?? (place < first ? -1 : Infinity);
    const sorted = indices
      .map((index, place) => [index, block(index, place)])
      .sort((one, other) => one[1] - other[1] || one[0] - other[0]);
    for (const [index, layer] of sorted) {
      const name = layer === -1 ? "in" : layer === Infinity ? "out" : String(layer);
      if (blocks.at(-1)?.family !== family || blocks.at(-1).name !== name) blocks.push({ family, name, places: [] });
      blocks.at(-1).places.push([index, order++]);
    }
    order += Math.max(2, Math.round(page.nodes.length / 25));
  }
  return blocks;
}

function rangeTraces(blocks, colours, type, what) {
  const places = blocks
    .flatMap((block) => block.places)
    .filter(([index]) => type === "" || page.nodes[index].op_type === type);
  const known = places.filter(([index]) => magnitude(page.nodes[index], what) > 0);
  const kinds = {
    fits: { keep: (node) => node.fixed === null && !node.beyond_range, symbol: "circle", color: colours.stable },
    beyond: {
      keep: (node) => node.fixed === null && node.beyond_range,
      symbol: "triangle-up",
      color: colours.mismatch,
    },
    fixed: { keep: (node) => node.fixed !== null, symbol: "diamond-open", color: colours.error },
  };
  const points = Object.entries(kinds).map(([kind, { keep, symbol, color }]) => {
    const own = known.filter(([index]) => keep(page.nodes[index]));
    return {
      type: "scatter",
      mode: "markers",
      meta: kind,
      hoverinfo: "none",
      marker: { symbol, color, size: 7 },
      customdata: own.map(([index]) => index),
      x: own.map(([, x]) => x),
      y: own.map(([index]) => magnitude(page.nodes[index], what)),
    };
  });
  const tops = {
    type: "scatter",
    mode: "lines",
    meta: "largest",
    hoverinfo: "skip",
    line: { color: colours.muted, width: 2 },
    x: [],
    y: [],
  };
  for (const block of blocks) {
    const own = block.places.filter((place) => known.includes(place));
    if (own.length === 0) continue;
    const top = Math.max(...own.map(([index]) => magnitude(page.nodes[index], what)));
    tops.x.push(block.places[0][1] - 0.5, block.places.at(-1)[1] + 0.5, null);
    tops.y.push(top, top, null);
  }
  return { traces: [tops, ...points], missing: places.length - known.length };
}

function limitLines(colours) {
  const { largest, safe, smallest_normal: normal, range_safety: safety, dtype } = page.limits;
  const text = (value) => number(value, value < 1e6 ? 5 : 3);
  const lines = [
    [largest, `largest ${dtype}: ${text(largest)}`, "solid", 0],
    [normal, `smallest normal: ${number(normal)}`, "solid", 0],
  ];
  if (safety !== 1) lines.push([safe, `safe, divided by ${number(safety)}: ${text(safe)}`, "dash", 1]);
  return {
    shapes: lines.map(([value, , dash]) => ({
      type: "line",
      xref: "paper",
      x0: 0,
      x1: 1,
      y0: value,
      y1: value,
      line: { color: colours.mismatch, width: 1.5, dash },
    })),
    annotations: lines.map(([value, text, , below]) => ({
      text,
      xref: "paper",
      x: 1,
      xanchor: narrow() ? "right" : "left",
      xshift: narrow() ? 0 : 6,
      y: Math.log10(value),
      yanchor: below ? "top" : "bottom",
      showarrow: false,
      font: { size: 11, color: colours.mismatch },
      ...(narrow() ? { bgcolor: colours.card, opacity: 0.9 } : {}),
    })),
  };
}

// One tick a decade, or fewer where the low dtype has dozens of them.
function decades(traces) {
  const values = [
    page.limits.largest,
    page.limits.smallest_normal,
    ...traces.flatMap((trace) => trace.y).filter((value) => value > 0),
  ];
  return Math.ceil(Math.log10(Math.max(...values) / Math.min(...values)) / 20);
}

const middle = (block) => (block.places[0][1] + block.places.at(-1)[1]) / 2;

function familyLabel(family, blocks, colours) {
  const own = blocks.filter((block) => block.family === family);
  return {
    text: `${family} layers`,
    x: own.length ? (own[0].places[0][1] + own.at(-1).places.at(-1)[1]) / 2 : 0,
    yref: "paper",
    y: 0,
    yshift: -26,
    yanchor: "top",
    showarrow: false,
    font: { color: colours.ink },
    visible: own.length > 0,
  };
}

function showRanges() {
  if (!page.limits) return;
  const colours = theme();
  const blocks = flow();
  const type = document.getElementById("range-type").value;
  const what = document.getElementById("range-what").value;
  const { traces, missing } = rangeTraces(blocks, colours, type, what);
  const limits = limitLines(colours);
  const step = Math.ceil(blocks.length / (narrow() ? 12 : 26));
  const labelled = blocks.filter(
    (block) => (!narrow() && !(Number(block.name) >= 0)) || Number(block.name) % step === 0,
  );
  draw(
    "ranges",
    traces,
    {
      ...layoutBase(colours, 430),
      margin: { l: 50, r: narrow() ? 14 : 165, t: 14, b: 56 },
      shapes: limits.shapes,
      annotations: [
        ...limits.annotations,
        ...["encoder", "decoder"].map((family) => familyLabel(family, blocks, colours)),
      ],
      xaxis: axis(colours, {
        tickvals: labelled.map(middle),
        ticktext: labelled.map((block) => block.name),
        showgrid: false,
        tickangle: 0,
      }),
      yaxis: axis(colours, {
        type: "log",
        title: { text: "largest magnitude", standoff: 14 },
        exponentformat: "power",
        dtick: decades(traces),
      }),
    },
    (index) => {
      const node = page.nodes[index];
      const word = node.fixed ? `never low: ${node.fixed}` : node.beyond_range ? "beyond the safe range" : "fits";
      const under =
        node.underflow === null
          ? []
          : [["below smallest normal", `${(100 * node.underflow).toFixed(1)}% of the result`]];
      return [
        make("b", {}, node.key),
        definitions([
          ["op type", node.op_type],
          ["", word],
          ["inputs", number(node.input, 4)],
          ["result", number(node.output, 4)],
          ...(node.inside ? [["inside", number(node.inside, 4)]] : []),
          ...under,
        ]),
      ];
    },
  );
  legend(
    "ranges-legend",
    [mark("stable"), "fits"],
    [mark("nonfinite beyond"), "beyond the safe range"],
    ["◇ never low"],
    ["grey line: the largest of its block"],
    ...(missing ? [[`${missing} nodes without a point: only zeros, not finite, or not measured`]] : []),
  );
}

function startRanges() {
  if (!page.limits) return;
  const types = [...new Set(page.nodes.map((node) => node.op_type))].sort();
  document
    .getElementById("range-type")
    .append(make("option", { value: "" }, "all"), ...types.map((type) => make("option", { value: type }, type)));
  document
    .getElementById("range-what")
    .append(...Object.entries(VALUES).map(([value, text]) => make("option", { value }, text)));
  for (const id of ["range-type", "range-what"]) document.getElementById(id).addEventListener("change", showRanges);
}
