// What a `stream-reset` event means, in words for the reader of a page.

const REASONS = {
  epoch: "The server has restarted, and its history has begun anew.",
  history: "This page was away for longer than the server's history reaches back.",
  unknown_id: "The server doesn't know where this page was.",
  slow: "This page fell too far behind.",
};

export function readReset(event) {
  const { reason, position } = JSON.parse(event.data);
  return { why: REASONS[reason] ?? "The stream has begun anew.", code: `stream-reset: ${reason}, asked for ${position}` };
}
