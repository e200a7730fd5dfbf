// better-sse on Node's http server.
import { createServer } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import { createChannel, createSession } from "better-sse";

const KEEPALIVE_MS = 15_000;
const channels = new Map();

const channelOf = (name) => {
  if (!channels.has(name)) channels.set(name, createChannel());
  return channels.get(name);
};

const now = () => process.hrtime.bigint();
const eventData = (seq, size) => `${seq} ${now()} `.padEnd(size, "x");
const turn = () => new Promise(setImmediate);

async function publish(query, response) {
  const number = (name, otherwise) => Number(query.get(name) ?? otherwise);
  const [count, size, rate, first] = [number("count", 1), number("size", 100), number("rate", 0), number("first", 1)];
  const total = number("channels", 1);
  const givesWay = query.get("yield") !== "0";
  const numbers = new Array(total).fill(first - 1);
  // As the other peers' publishers: before the clock starts, where nobody measures how long they take.
  const made = givesWay ? [] : Array.from({ length: count }, (_, n) => eventData(first + n, size));
  const began = now();
  for (let n = 0; n < count; n++) {
    const index = total > 1 ? Math.floor(Math.random() * total) : 0;
    const name = total > 1 ? `c${index}` : query.get("channel") ?? "c0";
    channelOf(name).broadcast(made[n] ?? eventData(++numbers[index], size));
    if (!givesWay) continue;
    const late = rate && n + 1 < count ? ((n + 1) / rate) * 1000 - Number(now() - began) / 1e6 : 0;
    await (late > 0 ? sleep(late) : turn());
  }
  const body = JSON.stringify({ published: count, seconds: Number(now() - began) / 1e9 });
  response.writeHead(200, { "Content-Length": body.length }).end(body);
}

async function generate(query, request, response) {
  const session = await createSession(request, response, { keepAlive: KEEPALIVE_MS });
  const [count, size, pause] = ["count", "size", "pause"].map((name) => Number(query.get(name)));
  for (let seq = 1; seq <= count; seq++) {
    session.push(eventData(seq, size));
    await (pause ? sleep(pause * 1000) : turn());
  }
  response.end();
}

const server = createServer(async (request, response) => {
  const url = new URL(request.url, "http://localhost");
  if (url.pathname === "/subscribe") {
    const channel = channelOf(url.searchParams.get("channel"));
    channel.register(await createSession(request, response, { keepAlive: KEEPALIVE_MS }));
  } else if (url.pathname === "/publish") {
    await publish(url.searchParams, response);
  } else if (url.pathname === "/generate") {
    await generate(url.searchParams, request, response);
  } else {
    response.writeHead(404).end();
  }
});
server.listen({ port: Number(process.env.BENCH_PORT), host: "127.0.0.1", backlog: 4096 });
