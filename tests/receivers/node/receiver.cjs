// Receives webhooks and believes only what the npm package `standardwebhooks` verified.
//
// Usage: WEBHOOK_SECRET=whsec_… NODE_PATH=….tools/npm/node_modules node receiver.cjs
//
// Writes one line of JSON to standard output for each request, after a first one that says where it listens. Answers
// 204 to a verified request and 401 to any other. Ends when its standard input does.
"use strict";

const http = require("node:http");
const { Webhook } = require("standardwebhooks");

const webhook = new Webhook(process.env.WEBHOOK_SECRET);

function say(line) {
  process.stdout.write(JSON.stringify(line) + "\n");
}

function judge(headers, body) {
  try {
    webhook.verify(body, headers);
    return { verified: true, error: "" };
  } catch (error) {
    return { verified: false, error: `${error.name}: ${error.message}` };
  }
}

const server = http.createServer((request, response) => {
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", () => {
    const body = Buffer.concat(chunks);
    const verdict = judge(request.headers, body.toString("utf8"));
    say({
      id: request.headers["webhook-id"] ?? "",
      path: request.url,
      body: body.toString("base64"),
      ...verdict,
    });
    response.writeHead(verdict.verified ? 204 : 401);
    response.end();
  });
});

server.listen(0, "127.0.0.1", () => say({ port: server.address().port }));
process.stdin.resume();
process.stdin.on("end", () => process.exit(0));
