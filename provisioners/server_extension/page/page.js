"use strict";
// Draws the clusters again every two seconds. All texts are set as text, never as HTML.

const EVERY_MS = 2000;
const MANY = 24; // from this many nodes on, each takes less room

function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children.filter((child) => child !== null && child !== ""));
  return element;
}

function amount(value) {
  return String(Math.round(value * 1000) / 1000);
}

function bytes(value) {
  if (value === 0) return "0";
  for (const [unit, factor] of [["TiB", 2 ** 40], ["GiB", 2 ** 30], ["MiB", 2 ** 20]]) {
    if (value >= factor) return `${Math.round((value / factor) * 10) / 10} ${unit}`;
  }
  return `${Math.round(value)} bytes`;
}

function age(seconds) {
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= 2 * length) return `${Math.floor(seconds / length)} ${unit}`;
  }
  return `${Math.round(seconds)} s`;
}

function count(number, word) {
  return `${number} ${word}${number === 1 ? "" : "s"}`;
}

function bar(className, share, title) {
  const fill = make("i");
  fill.style.width = `${Math.min(100, Math.max(0, share * 100))}%`;
  const element = make("div", className, fill);
  element.title = title;
  element.setAttribute("role", "img");
  element.setAttribute("aria-label", title);
  return element;
}

function total(value, text) {
  return make("div", "total", make("b", "", value), text);
}

// Some clusters say only how many GPUs of a node others hold, not which ones.
function heldByOthers(node) {
  const byKernels = node.devices.reduce((sum, gpu) => sum + gpu.promised, 0);
  return Math.max(0, Math.round((node.gpus_promised - byKernels) * 1000) / 1000);
}

function countFree(node) {
  return Math.max(0, node.devices.filter((gpu) => gpu.promised === 0).length - Math.ceil(heldByOthers(node)));
}

function drawTotals(cluster) {
  const gpus = cluster.nodes.flatMap((node) => node.devices);
  const waiting = cluster.kernels.filter((kernel) => kernel.state === "queued" || kernel.state === "pending");
  const free = cluster.nodes.reduce((sum, node) => sum + countFree(node), 0);
  return make(
    "div",
    "totals",
    total(String(cluster.nodes.length), cluster.nodes.length === 1 ? "node" : "nodes"),
    gpus.length ? total(`${free} of ${gpus.length}`, "GPUs are wholly free") : null,
    total(String(cluster.kernels.length - waiting.length), "kernels run or start"),
    total(String(waiting.length), "kernels wait"),
  );
}

function drawAmount(label, promised, whole, used, format) {
  const usedText = used === null ? "use unknown" : `${format(used)} used`;
  const title = `${label}: ${format(promised)} of ${format(whole)} promised, ${usedText}`;
  const text = make("span", "short", `${format(promised)} of ${format(whole)}`);
  return make("div", "amount", make("span", "dim", label), bar("bar", whole ? promised / whole : 0, title), text);
}

function drawNode(node) {
  const gpus = node.devices.map((gpu) => {
    const used = gpu.used === null ? "use unknown" : `${Math.round(gpu.used * 100)} % used`;
    const isHeld = node.gpus_promised >= node.devices.length;
    const share = isHeld ? 1 : gpu.promised;
    const isKnown = isHeld || share >= 1 || !heldByOthers(node);
    const promised = isKnown ? `${Math.round(share * 100)} % promised` : "others hold GPUs of this node, maybe this one";
    return bar("gpu", share, `GPU ${gpu.id} (${gpu.model || "model unknown"}): ${promised}, ${used}`);
  });
  return make(
    "section",
    node.is_draining ? "node draining" : "node",
    make("div", "name", node.id, make("span", "", count(node.kernels, "kernel"))),
    drawAmount("CPUs", node.cpus_promised, node.cpus, node.cpus_used, amount),
    drawAmount("memory", node.memory_promised_bytes, node.memory_bytes, node.memory_used_bytes, bytes),
    gpus.length ? make("div", "gpus", ...gpus) : null,
    node.is_draining ? make("p", "note", `draining${node.drains_because ? `: it ${node.drains_because}` : ""}`) : null,
  );
}

function drawTable(titles, rows) {
  const head = make("tr", "", ...titles.map((title) => make("th", "", title)));
  const body = rows.map((cells) => make("tr", "", ...cells.map((cell) => make("td", "", cell))));
  return make("div", "scroll", make("table", "", make("thead", "", head), make("tbody", "", ...body)));
}

// Stopping is for the kernels of this user alone: no service lists those of others.
function makeStop(kernel) {
  const button = make("button", "", "Stop");
  button.setAttribute("aria-label", `Stop ${kernel.title || kernel.id}`);
  button.onclick = async () => {
    if (!confirm(`Stop ${kernel.title || kernel.id}? Its variables are lost.`)) return;
    button.disabled = true;
    const token = document.cookie.match(/(?:^|; )_xsrf=([^;]*)/)?.[1] ?? "";
    const answer = await fetch(`api/clusters/kernels/${kernel.id}`, { method: "DELETE", headers: { "X-XSRFToken": token } });
    if (!answer.ok) alert(`It was not stopped: the server answered ${answer.status}.`);
    await draw();
  };
  return button;
}

function describeState(kernel) {
  if (kernel.state !== "running") return kernel.state;
  if (kernel.is_busy) return "busy";
  return kernel.idle_s === null ? "running" : `idle ${age(kernel.idle_s)}`;
}

function drawQueue(kernels) {
  const waiting = kernels.filter((kernel) => kernel.state === "queued" || kernel.state === "pending");
  if (!waiting.length) return [];
  waiting.sort((one, other) => (one.position || 0) - (other.position || 0));
  const rows = waiting.map((kernel) => [
    kernel.state === "pending" ? "pending" : String(kernel.position ?? "-"),
    make("code", "", kernel.id.slice(0, 8)),
    kernel.title || "-",
    kernel.owner,
    kernel.request,
    kernel.waits_for || "-",
    make("span", "short", age(kernel.age_s)),
    makeStop(kernel),
  ]);
  const titles = ["position", "kernel", "notebook", "owner", "asks for", "waits for", "age", ""];
  return [make("h3", "", "Queue"), drawTable(titles, rows)];
}

function drawKernels(kernels) {
  const running = kernels.filter((kernel) => kernel.state !== "queued" && kernel.state !== "pending");
  if (!running.length) return [make("p", "dim", "No kernel runs.")];
  running.sort((one, other) => one.node.localeCompare(other.node) || other.age_s - one.age_s);
  const rows = running.map((kernel) => [
    make("code", "", kernel.id.slice(0, 8)),
    make("span", "", kernel.title || "-", kernel.prospect ? make("p", "note", `⚠ ${kernel.prospect}`) : null),
    describeState(kernel),
    kernel.owner,
    kernel.node || "-",
    kernel.devices.length ? kernel.devices.join(", ") : "-",
    kernel.request,
    kernel.memory_bytes === null ? "unknown" : bytes(kernel.memory_bytes),
    make("span", "short", age(kernel.age_s)),
    makeStop(kernel),
  ]);
  const titles = ["kernel", "notebook", "state", "owner", "node", "GPU", "asked for", "memory used", "age", ""];
  return [make("h3", "", "Kernels"), drawTable(titles, rows)];
}

function drawTypes(types) {
  if (!types.length) return [];
  const rows = types.map((type) => [
    type.name,
    type.node,
    String(type.running),
    type.limit === null ? "-" : String(type.limit),
  ]);
  const titles = ["type", "each has", "running", "at most"];
  return [make("h3", "", "Nodes that the cluster could start"), drawTable(titles, rows)];
}

function drawCluster(cluster) {
  const title = cluster.address ? `${cluster.backend} at ${cluster.address}` : cluster.backend;
  if (cluster.problem) return make("article", "", make("h2", "", title), make("p", "problem", cluster.problem));
  return make(
    "article",
    cluster.nodes.length >= MANY ? "many" : "",
    make("h2", "", title),
    drawTotals(cluster),
    ...drawQueue(cluster.kernels),
    ...drawKernels(cluster.kernels),
    make("h3", "", "Nodes"),
    make("p", "dim", "A bar shows what is promised to kernels. Each box is a GPU."),
    make("div", "nodes", ...cluster.nodes.map(drawNode)),
    ...drawTypes(cluster.node_types),
  );
}

async function draw() {
  const state = document.getElementById("state");
  try {
    const answer = await fetch("api/clusters", { headers: { Accept: "application/json" } });
    if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
    const { clusters } = await answer.json();
    document.getElementById("clusters").replaceChildren(...clusters.map(drawCluster));
    state.className = "";
    state.textContent = clusters.length
      ? `Read at ${new Date().toLocaleTimeString()}.`
      : "No scheduler service runs. The first kernel of roost's starts one.";
  } catch (problem) {
    state.className = "problem";
    state.textContent = `The clusters cannot be read (${problem.message}). What you see may be old.`;
  }
}

async function follow() {
  for (;;) {
    if (!document.hidden) await draw();
    await new Promise((wake) => setTimeout(wake, EVERY_MS));
  }
}

follow();
