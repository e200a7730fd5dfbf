"""What runs inside Redis, and the form in which entries travel through it.

All keys begin with one hash tag, so that a cluster keeps them on one node:

    {prefix}:meta              hash: epoch, the server's run, seq, floor, and the seq at which the epoch began
    {prefix}:channels          hash: channel -> "<last seq> <whether that was an end> <entries that it keeps, 0 for the default>"
    {prefix}:order             sorted set: channel by its last seq, for dropping the oldest
    {prefix}:stream:<channel>  stream: <seq>-0 -> p (prev), t (Redis's milliseconds), b (the packed entry)
    {prefix}:token:<token>     the id that a publish was given
    {prefix}:reports           sorted set: process by the second at which its report expires
    {prefix}:report:<process>  hash: channel -> streams
    {prefix}:task:<id>         hash: channel, facts, state, cancel ("1" where it was asked to end), nonce (of who began it)
    {prefix}:parts:<id>        hash: part -> seq and packed entry; it is there, with an empty field, as long as they are kept
    {prefix}:tasks             sorted set: unfinished tasks by their beats, which are also the milliseconds of the last, about

Pub/Sub knows no database numbers: its channels carry the database's.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Final

from sseflask.ring import KEEP_ALL, Entry

from .store import Publication
from .tasks import REMEMBERED_SECONDS, TaskState

#: Seconds that the token of a publish is remembered.
TOKEN_SECONDS: Final = 60

_IS_END: Final = 1
_HAS_NAME: Final = 2
_HAS_USER_ID: Final = 4
_HAS_HISTORY: Final = 8
#: The flags, and the lengths of the name and of the publisher's id. The history follows, if it has one; then these; then the body.
_PACKED: Final = struct.Struct(">BII")
_HISTORY: Final = struct.Struct(">I")
#: Epoch, seq, prev; the packed entry follows.
_LIVE: Final = struct.Struct(">12sQQ")
#: Epoch, seq.
_LIFE: Final = struct.Struct(">12sQ")
#: What stands before each packed entry that is read: seq, prev, Redis's milliseconds, bytes.
_STORED: Final = struct.Struct(">QQQI")
#: What stands before the packed entry of a part.
_SEQ: Final = struct.Struct(">Q")


class Script:
    """A Lua script, and the name under which Redis keeps it."""

    __slots__ = ("name", "text")

    def __init__(self, text: str) -> None:
        self.text = text.encode()
        # What EVALSHA asks for; nothing rests on it.
        self.name = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()


_NUMBER_FUNCTIONS: Final = """
local function text(number) return string.format('%.0f', number) end

local function milliseconds()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
"""

# KEYS: meta, channels, order. ARGV: the server's run id, "1" where a restart loses nothing, an epoch to begin, the control channel.
_LIFE_FUNCTION: Final = (
    _NUMBER_FUNCTIONS
    + """
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
"""
)

_FINAL_FUNCTION: Final = f"""
local function is_final(state) return {" or ".join(f"state == '{state}'" for state in TaskState if state.is_final)} end
"""

# KEYS, where it is called: the second is `channels`.
_KEEPS_ALL_FUNCTION: Final = f"""
local function keeps_all(channel)
  local found = redis.call('HGET', KEYS[2], channel)
  local is_end, kept = string.match(found or '', '^%d+ (%d) (%d+)$')
  return kept == '{KEEP_ALL}' and is_end == '0'
end
"""

# Each beat is another number, however soon it follows, and whatever becomes of the clock.
_BEAT_FUNCTION: Final = (
    _NUMBER_FUNCTIONS
    + f"""
local remembered_seconds = '{REMEMBERED_SECONDS}'

local function beat(beats, id)
  local last = tonumber(redis.call('ZSCORE', beats, id) or 0)
  redis.call('ZADD', beats, text(math.max(last + 1, milliseconds())), id)
end
"""
)

# KEYS, besides: stream, token; in the name of a task also the task, its parts, the unfinished tasks. ARGV, besides: channel, live
# channel, packed entry, the publisher's id, whether it is an end, entries that the channel keeps ("" leaves them), the default for
# that, seconds, channels remembered, the streams' prefix; of the task its id, "=" and the part ("" for none), the state that begins
# ("" for none), whether that is final.
# Nothing is stored before the first write, XADD: an error that comes with it (no memory, a replica) leaves no trace. The token
# comes before PUBLISH, so that whatever was heard of can't be stored again. Channels go out of date in the order of their last
# entries, so if one has no stream, nor do those before it: two at a time are forgotten, as one comes. Only those that keep all and
# haven't ended may have one for longer; where one is met it is put at the end of the line.
# Functions, made anew with each run, are made only where they are needed.
PUBLISH: Final = Script(
    _LIFE_FUNCTION
    + """
local known = redis.call('GET', KEYS[5])
if known then return {known, 0} end
if #KEYS > 5 then
"""
    + _FINAL_FUNCTION
    + """
  local state = redis.call('HGET', KEYS[6], 'state')
  if not state or is_final(state) then return {'', 0, state or ''} end
end
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
redis.call('EXPIRE', KEYS[4], limit == '"""
    + str(KEEP_ALL)
    + """' and ARGV[9] == '0' and '"""
    + str(REMEMBERED_SECONDS)
    + """' or ARGV[12])
redis.call('HSET', KEYS[1], 'seq', number)
if #KEYS > 5 then
  local remembered_seconds = '"""
    + str(REMEMBERED_SECONDS)
    + """'
  if ARGV[16] ~= '' then redis.call('HSET', KEYS[7], string.sub(ARGV[16], 2), struct.pack('>I8', seq + 1) .. ARGV[7]) end
  if ARGV[17] ~= '' then redis.call('HSET', KEYS[6], 'state', ARGV[17]) end
  if ARGV[18] == '1' then redis.call('ZREM', KEYS[8], ARGV[15]) end
  redis.call('EXPIRE', KEYS[6], remembered_seconds)
  redis.call('EXPIRE', KEYS[7], ARGV[18] == '1' and ARGV[12] or remembered_seconds)
end
redis.call('HSET', KEYS[2], channel, number .. ' ' .. ARGV[9] .. ' ' .. limit)
redis.call('ZADD', KEYS[3], number, channel)
local id = ARGV[8]
if id == '' then id = epoch .. '-' .. number end
redis.call('SET', KEYS[5], id, 'EX', """
    + str(TOKEN_SECONDS)
    + """)
if not found then
"""
    + _KEEPS_ALL_FUNCTION
    + """
  local remembered = tonumber(ARGV[13])
  local spare = 0
  for _, name in ipairs(redis.call('ZRANGE', KEYS[3], remembered, remembered + 1)) do
    if redis.call('EXISTS', ARGV[14] .. name) == 0 then
      spare = spare + 1
    elseif keeps_all(name) then
      redis.call('ZADD', KEYS[3], number, name)
    else
      break
    end
  end
  if spare > 0 then
    local dropped = redis.call('ZPOPMIN', KEYS[3], spare)
    for i = 1, #dropped, 2 do
      local name = dropped[i]
      if redis.call('EXISTS', ARGV[14] .. name) == 1 then
        redis.call('ZADD', KEYS[3], number, name)
      else
        local last = string.match(redis.call('HGET', KEYS[2], name) or '', '^%d+')
        redis.call('HDEL', KEYS[2], name)
        floor = math.max(floor, tonumber(last or dropped[i + 1]))
      end
    end
    redis.call('HSET', KEYS[1], 'floor', text(floor))
  end
end
redis.call('PUBLISH', ARGV[6], epoch .. struct.pack('>I8I8', seq + 1, tonumber(prev)) .. ARGV[7])
return {id, 1}
"""
)

# KEYS, besides: the streams. ARGV, besides: how many entries of each at the most, then for each its channel, the number after which
# it is read, "" for no entries, and the last that is wanted, "" for all. What is found of each is joined: an array takes a client
# several times as long to read.
READ: Final = Script(
    _LIFE_FUNCTION
    + """
local epoch, seq, floor = life()
local states, entries = {}, {}
for i = 1, #KEYS - 3 do
  local channel, after, last = ARGV[3 + 3 * i], ARGV[4 + 3 * i], ARGV[5 + 3 * i]
  local found, joined = redis.call('HGET', KEYS[2], channel), {}
  if found and after ~= '' and tonumber(string.match(found, '^%d+')) > tonumber(after) then
    local upto = last == '' and '+' or last .. '-0'
    for j, one in ipairs(redis.call('XRANGE', KEYS[3 + i], '(' .. after .. '-0', upto, 'COUNT', ARGV[5])) do
      local fields = one[2]
      local number = tonumber(string.match(one[1], '^%d+'))
      joined[j] = struct.pack('>I8I8I8I4', number, tonumber(fields[2]), tonumber(fields[4]), #fields[6]) .. fields[6]
    end
  end
  states[i], entries[i] = found, table.concat(joined)
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

# KEYS: the task, its parts, the unfinished tasks. ARGV: its id, channel, facts, and what names this call.
CREATE: Final = Script(
    _BEAT_FUNCTION
    + """
local nonce = redis.call('HGET', KEYS[1], 'nonce')
if nonce then return nonce == ARGV[4] and 1 or 0 end
redis.call('HSET', KEYS[1], 'channel', ARGV[2], 'facts', ARGV[3], 'state', '"""
    + TaskState.PENDING
    + """', 'cancel', '0', 'nonce', ARGV[4])
redis.call('EXPIRE', KEYS[1], remembered_seconds)
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[2], '', '')
redis.call('EXPIRE', KEYS[2], remembered_seconds)
beat(KEYS[3], ARGV[1])
return 1
"""
)

# KEYS: the task, its parts.
FIND: Final = Script("""
return {
  redis.call('HMGET', KEYS[1], 'channel', 'facts', 'state', 'cancel'),
  redis.call('HGETALL', KEYS[2]),
  redis.call('EXISTS', KEYS[2]),
}
""")

# KEYS: the unfinished tasks, channels, then each task and its parts. ARGV: the streams' prefix, then the tasks' ids. A run that is
# silent for long keeps its stream too.
RENEW: Final = Script(
    _FINAL_FUNCTION
    + _KEEPS_ALL_FUNCTION
    + _BEAT_FUNCTION
    + """
local leases = {}
for i = 2, #ARGV do
  local task, parts = KEYS[2 * i - 1], KEYS[2 * i]
  local found = redis.call('HMGET', task, 'state', 'cancel', 'channel')
  if found[1] == 'pending' then
    found[1] = 'running'
    redis.call('HSET', task, 'state', 'running')
  end
  leases[i - 1] = found[1] and {found[1], found[2]} or 0
  if found[1] and not is_final(found[1]) then
    redis.call('EXPIRE', task, remembered_seconds)
    redis.call('EXPIRE', parts, remembered_seconds)
    beat(KEYS[1], ARGV[i])
    if keeps_all(found[3]) then redis.call('EXPIRE', ARGV[1] .. found[3], remembered_seconds) end
  end
end
return leases
"""
)

# KEYS: the unfinished tasks. ARGV: the tasks' prefix. Those whose last beat was long ago are dropped if they are gone, some at a
# time.
BEATS: Final = Script(
    _BEAT_FUNCTION
    + """
local silent = milliseconds() - 1000 * remembered_seconds
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', text(silent), 'LIMIT', 0, 100)) do
  if redis.call('EXISTS', ARGV[1] .. id) == 0 then redis.call('ZREM', KEYS[1], id) end
end
return redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
"""
)

# KEYS: the task.
CANCEL: Final = Script(
    _FINAL_FUNCTION
    + """
local state = redis.call('HGET', KEYS[1], 'state')
if state and not is_final(state) then redis.call('HSET', KEYS[1], 'cancel', '1') end
return state
"""
)


def packed(publication: Publication) -> bytes:
    """An event as it is stored."""
    name = b"" if publication.name is None else publication.name.encode()
    user_id = b"" if publication.user_id is None else publication.user_id.encode()
    flags = (
        (_IS_END if publication.is_end else 0)
        | (_HAS_NAME if publication.name is not None else 0)
        | (_HAS_USER_ID if publication.user_id is not None else 0)
        | (_HAS_HISTORY if publication.history is not None else 0)
    )
    history = b"" if publication.history is None else _HISTORY.pack(publication.history)
    return b"%b%b%b%b%b" % (_PACKED.pack(flags, len(name), len(user_id)), history, name, user_id, publication.body)


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
    name = user_id = history = None
    if flags & _HAS_HISTORY:
        (history,) = _HISTORY.unpack_from(blob, offset)
        offset += _HISTORY.size
    if flags & _HAS_NAME:
        name = blob[offset : offset + name_size].decode()
        offset += name_size
    if flags & _HAS_USER_ID:
        user_id = blob[offset : offset + id_size].decode()
        offset += id_size
    frame = blob[offset:] if user_id is not None else b"id: %b-%d\n%b" % (epoch.encode(), seq, blob[offset:])
    return Entry(seq, prev, channel, frame, name, user_id, bool(flags & _IS_END), at, history)


def part(blob: bytes) -> tuple[int, bytes]:
    """The number and the encoded event of a task's part."""
    (seq,) = _SEQ.unpack_from(blob)
    flags, name_size, id_size = _PACKED.unpack_from(blob, _SEQ.size)
    history_size = _HISTORY.size if flags & _HAS_HISTORY else 0
    return seq, blob[_SEQ.size + _PACKED.size + history_size + name_size + id_size :]


def live_entry(channel: str, message: bytes, at: float) -> tuple[str, Entry]:
    """The epoch and the entry of a live message."""
    epoch, seq, prev = _LIVE.unpack_from(message)
    life = epoch.decode()
    return life, entry(life, seq, prev, channel, message, at, offset=_LIVE.size)


def new_life(message: bytes) -> tuple[str, int]:
    """The epoch and the head's number that a message on the control channel tells."""
    epoch, seq = _LIFE.unpack(message)
    return epoch.decode(), seq


def stored(joined: bytes) -> list[tuple[int, int, int, bytes]]:
    """What was read of a stream: for each entry its number, the one before it, Redis's milliseconds and what was `packed`."""
    found = []
    offset = 0
    while offset < len(joined):
        seq, prev, milliseconds, size = _STORED.unpack_from(joined, offset)
        offset += _STORED.size
        found.append((seq, prev, milliseconds, joined[offset : offset + size]))
        offset += size
    return found


def chained(
    epoch: str, channel: str, last: int, found: Sequence[tuple[int, int, int, bytes]], now_ms: int, now: float
) -> list[Entry]:
    """The entries of a stream that are an unbroken chain up to its channel's last.

    Args:
        epoch: The life whose ids they get.
        channel: The channel's name.
        last: The number of its last entry.
        found: What was `stored`.
        now_ms: Redis's milliseconds at that moment.
        now: This process's second.
    """
    chain: list[Entry] = []
    for seq, prev, milliseconds, blob in reversed(found):
        if seq != last:
            # An entry between was deleted, or this one is of a life that didn't end in this one.
            break
        chain.append(entry(epoch, seq, prev, channel, blob, now - max(now_ms - milliseconds, 0) / 1000))
        last = prev
    chain.reverse()
    return chain
