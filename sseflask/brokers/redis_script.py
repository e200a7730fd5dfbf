"""What runs inside Redis, and the form in which entries travel through it.

All keys begin with one hash tag, so that a cluster keeps them on one node:

    {prefix}:meta              hash: epoch, the server's run, seq, floor, and the seq at which the epoch began
    {prefix}:channels          hash: channel -> "<last seq> <whether that was an end> <entries that it keeps, 0 for the default>"
    {prefix}:order             sorted set: channel by its last seq, for dropping the oldest
    {prefix}:stream:<channel>  stream: <seq>-0 -> p (prev), t (Redis's milliseconds), b (the packed entry)
    {prefix}:token:<token>     the id that a publish was given
    {prefix}:reports           sorted set: process by the second at which its report expires
    {prefix}:report:<process>  hash: channel -> streams

Pub/Sub knows no database numbers: its channels carry the database's.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Any, Final

from sseflask.log import Entry

from .store import Publication

#: Seconds that the token of a publish is remembered.
TOKEN_SECONDS: Final = 60

_IS_END: Final = 1
_HAS_NAME: Final = 2
_HAS_USER_ID: Final = 4
#: The flags, and the lengths of the name and of the publisher's id, which follow; the body is the rest.
_PACKED: Final = struct.Struct(">BII")
#: Epoch, seq, prev; the packed entry follows.
_LIVE: Final = struct.Struct(">12sQQ")
#: Epoch, seq.
_LIFE: Final = struct.Struct(">12sQ")


class Script:
    """A Lua script, and the name under which Redis keeps it."""

    __slots__ = ("name", "text")

    def __init__(self, text: str) -> None:
        self.text = text.encode()
        # What EVALSHA asks for; nothing rests on it.
        self.name = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()


# KEYS: meta, channels, order. ARGV: the server's run id, "1" where a restart loses nothing, an epoch to begin, the control channel.
_LIFE_FUNCTION: Final = """
local function text(number) return string.format('%.0f', number) end

local function life()
  local found = redis.call('HMGET', KEYS[1], 'epoch', 'run', 'seq', 'floor')
  local epoch, seq, floor = found[1], tonumber(found[3] or 0), tonumber(found[4] or 0)
  if epoch and found[2] == ARGV[1] then return epoch, seq, floor end
  if epoch and ARGV[2] == '1' then
    redis.call('HSET', KEYS[1], 'run', ARGV[1])
    return epoch, seq, floor
  end
  if not epoch then
    seq, floor = 0, 0
    redis.call('DEL', KEYS[2], KEYS[3])
  end
  redis.call('HSET', KEYS[1], 'epoch', ARGV[3], 'run', ARGV[1], 'seq', text(seq), 'floor', text(floor), 'boundary', text(seq))
  redis.call('PUBLISH', ARGV[4], ARGV[3] .. struct.pack('>I8', seq))
  return ARGV[3], seq, floor
end

local function milliseconds()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
"""

# KEYS, besides: stream, token. ARGV, besides: channel, live channel, packed entry, the publisher's id, whether it is an end,
# entries that the channel keeps ("" leaves them), the default for that, seconds, channels remembered, the streams' prefix.
# Nothing is stored before the first write, XADD: an error that comes with it (no memory, a replica) leaves no trace. The token
# comes before PUBLISH, so that whatever was heard of can't be stored again. Channels go out of date in the order of their last
# entries, so if one has no stream, nor do those before it: two at a time are forgotten, as one comes.
PUBLISH: Final = Script(
    _LIFE_FUNCTION
    + """
local known = redis.call('GET', KEYS[5])
if known then return {known, 0} end
local epoch, seq, floor = life()
local channel = ARGV[5]
local found = redis.call('HGET', KEYS[2], channel)
local prev, limit = text(floor), '0'
if found then
  local last, _, kept = string.match(found, '^(%d+) (%d) (%d+)$')
  prev, limit = last, kept
end
if ARGV[10] ~= '' then limit = ARGV[10] end
local number = text(seq + 1)
local function add()
  return redis.pcall('XADD', KEYS[4], 'MAXLEN', limit == '0' and ARGV[11] or limit, number .. '-0',
    'p', prev, 't', text(milliseconds()), 'b', ARGV[7])
end
local added = add()
if type(added) == 'table' and added.err and string.find(added.err, 'equal or smaller', 1, true) then
  redis.call('DEL', KEYS[4])
  added = add()
end
if type(added) == 'table' and added.err then return added end
redis.call('EXPIRE', KEYS[4], ARGV[12])
redis.call('HSET', KEYS[1], 'seq', number)
redis.call('HSET', KEYS[2], channel, number .. ' ' .. ARGV[9] .. ' ' .. limit)
redis.call('ZADD', KEYS[3], number, channel)
local id = ARGV[8]
if id == '' then id = epoch .. '-' .. number end
redis.call('SET', KEYS[5], id, 'EX', """
    + str(TOKEN_SECONDS)
    + """)
if not found then
  local remembered = tonumber(ARGV[13])
  local spare = 0
  for _, name in ipairs(redis.call('ZRANGE', KEYS[3], remembered, remembered + 1)) do
    if redis.call('EXISTS', ARGV[14] .. name) == 1 then break end
    spare = spare + 1
  end
  if spare > 0 then
    local dropped = redis.call('ZPOPMIN', KEYS[3], spare)
    for i = 1, #dropped, 2 do
      redis.call('HDEL', KEYS[2], dropped[i])
      floor = math.max(floor, tonumber(dropped[i + 1]))
    end
    redis.call('HSET', KEYS[1], 'floor', text(floor))
  end
end
redis.call('PUBLISH', ARGV[6], epoch .. struct.pack('>I8I8', seq + 1, tonumber(prev)) .. ARGV[7])
return {id, 1}
"""
)

# KEYS, besides: the streams. ARGV, besides: for each its channel and the number after which it is read, "" for no entries.
READ: Final = Script(
    _LIFE_FUNCTION
    + """
local epoch, seq, floor = life()
local states, entries = {}, {}
for i = 1, #KEYS - 3 do
  local found, after = redis.call('HGET', KEYS[2], ARGV[3 + 2 * i]), ARGV[4 + 2 * i]
  states[i], entries[i] = found, {}
  if found and after ~= '' and tonumber(string.match(found, '^%d+')) > tonumber(after) then
    entries[i] = redis.call('XRANGE', KEYS[3 + i], '(' .. after .. '-0', '+')
  end
end
return {epoch, text(seq), text(floor), text(milliseconds()), states, entries}
"""
)

# KEYS: reports, the report. ARGV: process, seconds, then channel and streams in turn.
REPORT: Final = Script("""
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('DEL', KEYS[2])
if #ARGV == 2 then return redis.call('ZREM', KEYS[1], ARGV[1]) end
for i = 3, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', KEYS[2], math.max(1, math.floor(ARGV[2] * 1000)))
redis.call('ZADD', KEYS[1], now + math.ceil(ARGV[2]), ARGV[1])
return 1
""")

# KEYS: reports. ARGV: the reports' prefix, then the channels asked for; none for all.
COUNTS: Final = Script("""
local counts, asked = {}, {}
for i = 2, #ARGV do asked[i - 1] = ARGV[i] end
for _, process in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local report = ARGV[1] .. process
  if #asked == 0 then
    local found = redis.call('HGETALL', report)
    for i = 1, #found, 2 do counts[found[i]] = (counts[found[i]] or 0) + found[i + 1] end
  else
    for _, channel in ipairs(asked) do
      counts[channel] = (counts[channel] or 0) + (redis.call('HGET', report, channel) or 0)
    end
  end
end
local flat = {}
for channel, count in pairs(counts) do
  flat[#flat + 1] = channel
  flat[#flat + 1] = count
end
return flat
""")


def packed(publication: Publication) -> bytes:
    """An event as it is stored."""
    name = b"" if publication.name is None else publication.name.encode()
    user_id = b"" if publication.user_id is None else publication.user_id.encode()
    flags = (
        (_IS_END if publication.is_end else 0)
        | (_HAS_NAME if publication.name is not None else 0)
        | (_HAS_USER_ID if publication.user_id is not None else 0)
    )
    return b"%b%b%b%b" % (_PACKED.pack(flags, len(name), len(user_id)), name, user_id, publication.body)


def entry(epoch: str, seq: int, prev: int, channel: str, blob: bytes, at: float, *, offset: int = 0) -> Entry:
    """The entry that was `packed`.

    Args:
        epoch: The life whose id it gets.
        seq: Its number.
        prev: The number of the entry before it in its channel.
        channel: Its channel's name.
        blob: What holds it.
        at: The second at which it was stored, by this process's clock.
        offset: Where it begins there.
    """
    flags, name_size, id_size = _PACKED.unpack_from(blob, offset)
    offset += _PACKED.size
    name = user_id = None
    if flags & _HAS_NAME:
        name = blob[offset : offset + name_size].decode()
        offset += name_size
    if flags & _HAS_USER_ID:
        user_id = blob[offset : offset + id_size].decode()
        offset += id_size
    frame = blob[offset:] if user_id is not None else b"id: %b-%d\n%b" % (epoch.encode(), seq, blob[offset:])
    return Entry(seq, prev, channel, frame, name, user_id, bool(flags & _IS_END), at)


def live_entry(channel: str, message: bytes, at: float) -> tuple[str, Entry]:
    """The epoch and the entry of a live message."""
    epoch, seq, prev = _LIVE.unpack_from(message)
    life = epoch.decode()
    return life, entry(life, seq, prev, channel, message, at, offset=_LIVE.size)


def new_life(message: bytes) -> tuple[str, int]:
    """The epoch and the head's number that a message on the control channel tells."""
    epoch, seq = _LIFE.unpack(message)
    return epoch.decode(), seq


def chained(epoch: str, channel: str, last: int, found: Sequence[Any], now_ms: int, now: float) -> list[Entry]:
    """The entries of a stream that are an unbroken chain up to its channel's last.

    Args:
        epoch: The life whose ids they get.
        channel: The channel's name.
        last: The number of its last entry.
        found: What XRANGE gave.
        now_ms: Redis's milliseconds at that moment.
        now: This process's second.
    """
    chain: list[Entry] = []
    for stream_id, fields in reversed(found):
        seq = int(stream_id.partition(b"-")[0])
        if seq != last:
            # An entry between was deleted, or this one is of a life that didn't end in this one.
            break
        prev, milliseconds, blob = int(fields[1]), int(fields[3]), fields[5]
        chain.append(entry(epoch, seq, prev, channel, blob, now - max(now_ms - milliseconds, 0) / 1000))
        last = prev
    chain.reverse()
    return chain
