// Latency against flip risk: every judged plan is one point. Those without a flip risk, most of them rejected, have a
// band of their own above, those without a latency one at the right.

const FINE = 0.1;

// Flip risk goes from 0 to hundreds, and 0 is a value: a scale that is even near 0 and logarithmic above.
function riskScale() {
  const values = page.plans
    .flatMap((plan) => [plan.flip_risk, plan.flip_risk_high])
    .filter((value) => value !== null && value > 0);
  const largest = Math.max(...values, 0);
  const sorted = values.sort((one, other) => one - other);
  const bent = values.length > 0 && largest > 10 * sorted[Math.floor(sorted.length / 2)];
  const at = (value) => (bent ? Math.log10(1 + value / FINE) : value);
  const ticks = [0, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000].filter((value) => value <= largest * 1.3);
  return {
    at,
    bent,
    top: at(largest) * 1.06 || 1,
    known: values.length > 0 || page.plans.some((plan) => plan.flip_risk !== null),
    ticks: bent ? { tickvals: ticks.map(at), ticktext: ticks.map(String) } : {},
  };
}

// Where a point without a coordinate goes: spread over its band in the order of judging, so that none hides another.
function spread(plans) {
  return new Map(plans.map((plan, index) => [plan.id, (index + 0.5) / plans.length]));
}

const BAND = 38;

const bandName = (plan) => (plan.verdict === "stable" ? "stable, no flip risk" : `rejected: ${plan.verdict}`);

function paretoPlaces(scale) {
  const aside = spread(page.plans.filter((plan) => plan.place === null));
  const bands = [...new Set(page.plans.filter((plan) => plan.flip_risk === null).map(bandName))].sort();
  return {
    bands,
    aside: aside.size > 0,
    of: (plan) => {
      const inBand = plan.flip_risk === null;
      const outside = plan.place === null;
      return {
        axes: `${outside ? "x2" : "x"}${inBand ? "y2" : "y"}`,
        x: outside ? aside.get(plan.id) : plan.x_ms,
        y: inBand ? bands.indexOf(bandName(plan)) : scale.at(plan.flip_risk),
      };
    },
  };
}

function pointTraces(places, scale, colours) {
  const bar = (plan) => plan.flip_risk !== null && (!many || plan.on_front || plan.chosen);
  const groups = new Map();
  for (const plan of page.plans) {
    const key = `${places.of(plan).axes} ${plan.size_bytes === null}`;
    groups.set(key, [...(groups.get(key) ?? []), plan]);
  }
  return [...groups.values()].map((plans) => {
    const found = plans.map(places.of);
    const selected = (plan) => plan.id === selection.plan?.id;
    return {
      type: "scatter",
      mode: "markers",
      meta: "plans",
      hoverinfo: "none",
      customdata: plans.map((plan) => plan.id),
      x: found.map((place) => place.x),
      y: found.map((place) => place.y),
      xaxis: found[0].axes.startsWith("x2") ? "x2" : "x",
      yaxis: found[0].axes.endsWith("y2") ? "y2" : "y",
      error_y: {
        type: "data",
        symmetric: false,
        thickness: 1,
        width: 3,
        color: colours.muted,
        visible: found[0].axes.endsWith("y"),
        array: plans.map((plan, index) => (bar(plan) ? scale.at(plan.flip_risk_high) - found[index].y : 0)),
        arrayminus: plans.map((plan, index) => (bar(plan) ? found[index].y - scale.at(plan.flip_risk_low) : 0)),
      },
      marker: {
        symbol: plans.map((plan) => SYMBOLS[plan.verdict]),
        opacity: plans.map((plan) => (plan.place === "expected" ? 0.5 : 1)),
        size: plans.map((plan) => (selected(plan) ? 17 : plan.chosen ? 14 : many ? 7 : rejected(plan) ? 10 : 12)),
        line: {
          color: plans.map((plan) => (selected(plan) ? colours.accent : colours.ink)),
          width: plans.map((plan) => (selected(plan) ? 3 : many ? 0.5 : 1)),
        },
        ...(plans[0].size_bytes === null
          ? { color: colours.muted }
          : { coloraxis: "coloraxis", color: plans.map((plan) => plan.size_bytes / 1e6) }),
      },
    };
  });
}

function frontTrace(places, colours) {
  const front = page.plans
    .filter((plan) => plan.on_front && places.of(plan).axes === "xy")
    .sort((one, other) => one.x_ms - other.x_ms);
  if (front.length < 2) return [];
  return [
    {
      type: "scatter",
      mode: "lines",
      meta: "front",
      hoverinfo: "skip",
      line: { color: colours.accent, width: 1.5, dash: "dot" },
      x: front.map((plan) => plan.x_ms),
      y: front.map((plan) => places.of(plan).y),
    },
  ];
}

function note(plan, text, places, log, colours, up) {
  const place = places.of(plan);
  const [, x, y] = place.axes.match(/(x2?)(y2?)/);
  return {
    text,
    x: log && x === "x" ? Math.log10(place.x) : place.x,
    y: place.y,
    xref: x,
    yref: y,
    showarrow: true,
    arrowhead: 0,
    arrowcolor: colours.muted,
    arrowwidth: 1,
    standoff: 9,
    ax: up ? 0 : -45,
    ay: up ? -34 : 34,
    font: { size: 12, color: colours.ink },
    bgcolor: colours.card,
  };
}

const WIDE_BAR = { title: { text: "size, MB", side: "right", font: { size: 11 } }, len: 0.6, x: 1.01 };
const NARROW_BAR = {
  title: { text: "size, MB", side: "top", font: { size: 11 } },
  orientation: "h",
  len: 0.9,
  y: -0.16,
  yanchor: "top",
};

function paretoLayout(places, scale, colours) {
  const xs = page.plans.filter((plan) => plan.place !== null).map((plan) => plan.x_ms);
  const log = xs.length > 0 && Math.max(...xs) > 10 * Math.min(...xs);
  const height = 440 + BAND * places.bands.length;
  const share = places.bands.length ? (scale.known ? (BAND * places.bands.length) / (height - 60) : 1) : 0;
  const right = !places.aside ? 1 : xs.length ? 0.86 : 0;
  const below = scale.known ? "y" : "y2";
  const chosen = page.plans.find((plan) => plan.chosen);
  const fp32 = page.plans.find((plan) => plan.is_fp32);
  return {
    ...layoutBase(colours, height),
    ...(right
      ? {
          xaxis: axis(colours, {
            title: { text: page.latency_title },
            type: log ? "log" : "linear",
            domain: [0, right],
            anchor: below,
          }),
        }
      : {}),
    yaxis: axis(colours, {
      title: { text: scale.bent ? "flips in 1,000 tokens (log scale above 0.1)" : "flips in 1,000 tokens" },
      visible: scale.known,
      anchor: right ? "x" : "x2",
      domain: [0, share ? Math.max(0, 1 - share - 0.04) : 1],
      range: [-0.03 * scale.top, scale.top],
      ...scale.ticks,
    }),
    ...(places.aside
      ? {
          xaxis2: axis(colours, {
            domain: right ? [right + 0.03, 1] : [0, 1],
            range: [0, 1],
            showticklabels: false,
            ticks: "",
            showgrid: false,
            title: { text: "no latency" },
            anchor: below,
          }),
        }
      : {}),
    ...(share
      ? {
          yaxis2: axis(colours, {
            anchor: right ? "x" : "x2",
            domain: [1 - share, 1],
            range: [-0.5, places.bands.length - 0.2],
            showticklabels: false,
            ticks: "",
            showgrid: false,
            fixedrange: true,
          }),
        }
      : {}),
    coloraxis: {
      colorscale: "Cividis",
      showscale: new Set(page.plans.map((plan) => plan.size_bytes).filter((size) => size !== null)).size > 1,
      colorbar: { outlinewidth: 0, thickness: 9, tickfont: { size: 11 }, ...(narrow() ? NARROW_BAR : WIDE_BAR) },
    },
    annotations: [
      ...places.bands.map((band, index) => ({
        text: band,
        xref: "paper",
        x: 0.005,
        xanchor: "left",
        yref: "y2",
        y: index + 0.44,
        yanchor: "middle",
        showarrow: false,
        font: { size: 11, color: colours.muted },
      })),
      ...(chosen && chosen !== fp32
        ? [
            note(
              chosen,
              `chosen: plan ${chosen.id}`,
              places,
              log,
              colours,
              scale.at(chosen.flip_risk ?? scale.top) < 0.15 * scale.top,
            ),
          ]
        : []),
      ...(fp32 ? [note(fp32, "fp32", places, log, colours, true)] : []),
    ],
  };
}

function showPareto() {
  const colours = theme();
  if (page.plans.length === 0) {
    document.getElementById("pareto").replaceChildren(make("p", { class: "empty" }, "No plan was judged."));
    return;
  }
  const scale = riskScale();
  const places = paretoPlaces(scale);
  draw(
    "pareto",
    [...frontTrace(places, colours), ...pointTraces(places, scale, colours)],
    paretoLayout(places, scale, colours),
    (id) => {
      const plan = planById.get(id);
      const expected = plan.place === "expected" ? [["expected by the cut", `${number(plan.x_ms)} ms`]] : [];
      return [make("b", {}, planTitle(plan)), definitions([...planFacts(id), ...expected])];
    },
    (id) => selection.select(id, true),
  );
  const verdicts = [...new Set(page.plans.map((plan) => plan.verdict))];
  legend(
    "pareto-legend",
    ...verdicts.map((verdict) => [mark(verdict), verdict]),
    ["bars: 90% interval of flip risk"],
    ["dotted: Pareto front"],
    ...(page.plans.some((plan) => plan.place === "expected")
      ? [["pale: rejected at once, drawn at the latency that the cut expected"]]
      : []),
    ...(page.validated ? [] : [["no validation set, so no flip risk"]]),
  );
}
