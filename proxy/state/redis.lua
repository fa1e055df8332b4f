-- What Redis runs: one script per verb, each atomic. Times are microseconds by Redis's own clock, so that machines agree.
-- Every key expires: with its window, its lease, or its record. A script that needs a calendar window gets it from the caller,
-- and answers {-1, now} when it is not that window by Redis's clock. redis.py says which keys there are.
--
-- A line `--- NAME after A` begins a part: a script is its own part after A, which stands after its own.

--- now
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local function number(value) return tonumber(value or 0) or 0 end
-- Many numbers travel as one text: that is less work for the other end.
local function words(text)
  local found = {}
  for word in string.gmatch(text, '%S+') do found[#found + 1] = word end
  return found
end
local function joined(numbers)
  for index, each in ipairs(numbers) do numbers[index] = string.format('%.0f', each) end
  return table.concat(numbers, ' ')
end

--- line after now
-- A queue: who has a slot (lease), who waits (since when), who waits (lease). Who waits is told on a channel when his turn comes.
local function promote(held, waiting, alive, lease, limit, channels)
  redis.call('ZREMRANGEBYSCORE', held, '-inf', now)
  for _, gone in ipairs(redis.call('ZRANGEBYSCORE', alive, '-inf', now)) do
    redis.call('ZREM', waiting, gone)
    redis.call('ZREM', alive, gone)
  end
  while redis.call('ZCARD', held) < limit do
    local first = redis.call('ZRANGE', waiting, 0, 0)[1]
    if not first then break end
    redis.call('ZREM', waiting, first)
    redis.call('ZREM', alive, first)
    redis.call('ZADD', held, now + lease, first)
    redis.call('PUBLISH', channels .. string.match(first, '^[^ ]+'), first)
  end
  for _, key in ipairs({held, waiting, alive}) do redis.call('PEXPIRE', key, math.ceil(lease / 500)) end
end

--- windows after line
-- A moving window is a sorted set of when something comes back, and a hash of how much each time, with their sum as `t`.
local function moving_forget(key)
  local gone = redis.call('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, 4000)
  if #gone == 0 then return end
  local sum = 0
  for _, taken in ipairs(redis.call('HMGET', key .. ':n', unpack(gone))) do sum = sum + number(taken) end
  redis.call('HINCRBY', key .. ':n', 't', 0 - sum) -- -sum may be -0, which is no integer to Redis
  redis.call('HDEL', key .. ':n', unpack(gone))
  redis.call('ZREM', key, unpack(gone))
end
local function moving_wait(key, over)
  local all = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  for index = 1, #all, 2 do
    over = over - number(redis.call('HGET', key .. ':n', all[index]))
    if over <= 0 then return all[index + 1] - now end
  end
  return -1
end
local function moving_take(key, amount, period, tick)
  if amount == 0 then return 0 end
  local back = now + period
  if tick > 1 then back = (math.floor(now / tick) + 1) * tick + period end
  local member = string.format('%.0f', back)
  redis.call('ZADD', key, back, member)
  redis.call('HINCRBY', key .. ':n', member, amount)
  redis.call('HINCRBY', key .. ':n', 't', amount)
  local ends = math.ceil((back - now) / 1000) + 1000
  redis.call('PEXPIRE', key, ends)
  redis.call('PEXPIRE', key .. ':n', ends)
  return back
end
local function fixed(key, period)
  local window = math.floor(now / period) * period
  local held = redis.call('HMGET', key, 'w', 'n')
  return window, number(held[1]) == window and number(held[2]) or 0
end
local function fixed_keep(key, window, period, total)
  redis.call('HSET', key, 'w', window, 'n', total)
  redis.call('PEXPIREAT', key, math.ceil((window + period) / 1000))
end
local function budget(key, start, floor)
  local held = redis.call('HMGET', key, 'w', 'spent', 'reserved')
  if number(held[1]) ~= start then return floor, 0 end
  return math.max(number(held[2]), floor), number(held[3])
end
local function budget_keep(key, start, ends, spent, reserved)
  redis.call('HSET', key, 'w', start, 'spent', spent, 'reserved', reserved)
  if ends > 0 then redis.call('PEXPIREAT', key, math.ceil(ends / 1000)) else redis.call('EXPIRE', key, 34560000) end
end
local function outside(start, ends) return now < start or (ends > 0 and now >= ends) end

--- ADMIT after windows
-- KEYS: one per claim, and three of a line, if it has a place at once. ARGV: lease, what the names of calls begin with (empty:
-- nothing will be settled), limit of the line, holder, its ticket, and words: of each claim its kind, limit, amount, and three more
-- that its kind has.
local lease, line, holder, given, claims, refused, wait = number(ARGV[1]), number(ARGV[3]), ARGV[4], words(ARGV[6]), {}, 0, 0
local keys, granted = {unpack(KEYS, 1, #given / 6)}, 0
for index, key in ipairs(keys) do
  local at = index * 6 - 6
  local kind, limit, amount = given[at + 1], number(given[at + 2]), number(given[at + 3])
  local a, b, c = number(given[at + 4]), number(given[at + 5]), number(given[at + 6])
  local claim, needed, wanted = {kind = kind, limit = limit, amount = amount, a = a, b = b, c = c}, math.max(amount, 1), nil
  if kind == 'm' then
    moving_forget(key)
    claim.total = number(redis.call('HGET', key .. ':n', 't'))
    if claim.total + needed > limit then
      wanted = needed > limit and -1 or moving_wait(key, claim.total + needed - limit)
    end
  elseif kind == 'f' then
    claim.window, claim.total = fixed(key, a)
    if claim.total + needed > limit then wanted = needed > limit and -1 or claim.window + a - now end
  elseif kind == 'b' then
    if outside(a, b) then return joined({-1, now}) end
    claim.spent, claim.reserved = budget(key, a, c)
    claim.total = claim.spent + claim.reserved
    if claim.total + needed > limit then wanted = (needed > limit or b == 0) and -1 or b - now end
  else
    redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
    claim.total, claim.mine = redis.call('ZCARD', key), redis.call('ZSCORE', key, holder)
    if not claim.mine and claim.total >= limit then wanted = 1000000 end
  end
  claims[index] = claim
  if wanted and refused == 0 then refused, wait = index, wanted end
end
if refused == 0 and ARGV[2] ~= '' then redis.call('SET', ARGV[2] .. holder, 1, 'EX', 86400) end
if refused == 0 and line > 0 then
  local held, waiting, alive = unpack(KEYS, #keys + 1)
  redis.call('ZREMRANGEBYSCORE', held, '-inf', now)
  if redis.call('ZCARD', waiting) == 0 and redis.call('ZCARD', held) < line then
    redis.call('ZADD', held, now + lease, ARGV[5])
    redis.call('PEXPIRE', held, math.ceil(lease / 500))
    granted = 1
  end
end
local answer = {refused, wait, granted}
for index, key in ipairs(keys) do
  local claim, reset, place = claims[index], 0, 0
  local amount = refused == 0 and claim.amount or 0
  if claim.kind == 'm' then
    place = moving_take(key, amount, claim.a, claim.b)
    local last = redis.call('ZRANGE', key, -1, -1)[1]
    reset = last and last - now or 0
  elseif claim.kind == 'f' then
    if amount > 0 then fixed_keep(key, claim.window, claim.a, claim.total + amount) end
    place = claim.window
    reset = claim.total + amount > 0 and claim.window + claim.a - now or 0
  elseif claim.kind == 'b' then
    if refused == 0 then budget_keep(key, claim.a, claim.b, claim.spent, claim.reserved + amount) end
    place = claim.a
    reset = claim.total + amount > 0 and (claim.b > 0 and claim.b - now or -1) or 0
  elseif refused == 0 then
    redis.call('ZADD', key, now + lease, holder)
    redis.call('PEXPIRE', key, math.ceil(lease / 500))
    amount = claim.mine and 0 or 1
  end
  local at = #answer
  answer[at + 1], answer[at + 2], answer[at + 3] = math.max(0, claim.limit - claim.total - amount), reset, place
end
return joined(answer)

--- SETTLE after windows
-- KEYS: as of ADMIT, of what is settled. ARGV: lease, what the names of calls begin with, limit of the line, what the names of
-- channels begin with, holder, its ticket (empty: it has no place), 1 if this may have been done already, and words: of each thing
-- taken its kind, amount taken, amount used, where it was taken, and three more.
local answer, given = {0}, words(ARGV[8])
local keys = {unpack(KEYS, 1, #given / 7)}
for index, key in ipairs(keys) do
  local at = index * 7 - 7
  if given[at + 1] == 'b' and outside(number(given[at + 5]), number(given[at + 6])) then return joined({-1, now}) end
end
if redis.call('DEL', ARGV[2] .. ARGV[5]) == 0 and ARGV[7] == '1' then return '0' end
if ARGV[6] ~= '' then
  local held, waiting, alive = unpack(KEYS, #keys + 1)
  redis.call('ZREM', held, ARGV[6])
  promote(held, waiting, alive, number(ARGV[1]), number(ARGV[3]), ARGV[4])
end
for index, key in ipairs(keys) do
  local at = index * 7 - 7
  local kind, taken, used = given[at + 1], number(given[at + 2]), number(given[at + 3])
  local place, a, b = number(given[at + 4]), number(given[at + 5]), number(given[at + 6])
  if kind == 's' then
    redis.call('ZREM', key, ARGV[5])
  elseif kind == 'b' then
    local spent, reserved = budget(key, a, number(given[at + 7]))
    if place == a then
      spent, reserved = spent + used, math.max(0, reserved - taken)
    else
      spent = spent + math.max(0, used - taken)
    end
    budget_keep(key, a, b, spent, reserved)
    answer[#answer + 1] = spent
  elseif used > taken then
    if kind == 'm' then
      moving_take(key, used - taken, a, b)
    else
      local window, total = fixed(key, a)
      fixed_keep(key, window, a, total + used - taken)
    end
  elseif kind == 'm' then
    local member = string.format('%.0f', place)
    local back = math.min(taken - used, number(redis.call('HGET', key .. ':n', member)))
    if place > now and back > 0 then
      redis.call('HINCRBY', key .. ':n', member, -back)
      redis.call('HINCRBY', key .. ':n', 't', -back)
    end
  else
    local window, total = fixed(key, a)
    if window == place then fixed_keep(key, window, a, math.max(0, total - (taken - used))) end
  end
end
return joined(answer)

--- RENEW after now
-- KEYS: slots. ARGV: lease, and the holder of each.
for index, key in ipairs(KEYS) do
  redis.call('ZADD', key, 'XX', now + number(ARGV[1]), ARGV[index + 1])
  redis.call('PEXPIRE', key, math.ceil(number(ARGV[1]) / 500))
end
return 0

--- queue after line
-- KEYS: of a line. ARGV: lease, limit, what the names of channels begin with, …
local held, waiting, alive, lease, limit = KEYS[1], KEYS[2], KEYS[3], number(ARGV[1]), number(ARGV[2])
local function advance() promote(held, waiting, alive, lease, limit, ARGV[3]) end
local function wait(ticket)
  redis.call('ZADD', waiting, now, ticket)
  redis.call('ZADD', alive, now + lease, ticket)
end

--- JOIN after queue
-- … size, ticket. 1: it has a slot, 0: it waits, -1: too many wait.
advance()
local granted = 0
if redis.call('ZCARD', waiting) == 0 and redis.call('ZCARD', held) < limit then
  redis.call('ZADD', held, now + lease, ARGV[5])
  granted = 1
elseif redis.call('ZCARD', waiting) >= number(ARGV[4]) then
  return -1
else
  wait(ARGV[5])
end
advance()
return granted

--- LEAVE after queue
-- … ticket.
for _, key in ipairs(KEYS) do redis.call('ZREM', key, ARGV[4]) end
advance()
return 0

--- STAY after queue
-- … and pairs of a ticket and 1 if it has a slot. The same, as it is now; what Redis has forgotten is put back.
local answer = {}
for at = 4, #ARGV, 2 do
  if ARGV[at + 1] == '1' or redis.call('ZSCORE', held, ARGV[at]) then
    redis.call('ZADD', held, now + lease, ARGV[at])
  elseif redis.call('ZSCORE', waiting, ARGV[at]) then
    redis.call('ZADD', alive, now + lease, ARGV[at])
  else
    wait(ARGV[at])
  end
end
advance()
for at = 4, #ARGV, 2 do answer[#answer + 1] = redis.call('ZSCORE', held, ARGV[at]) and 1 or 0 end
return answer

--- limits after now
-- A rest without an end (a Lua number holds it exactly); how long failures, and rests without an end, are remembered; of how
-- many names.
local forever, record_s, unending_s, tracked = 9000000000000000, 86400, 30 * 86400, 50000

--- record after limits
-- KEYS: a record {n failures, until it rests, tried until}, all names of records (when they are forgotten).
-- ARGV: name, channel, …
local held = redis.call('HMGET', KEYS[1], 'n', 'until', 'tried')
local failures, rests, tried = number(held[1]), number(held[2]), number(held[3])
local function keep()
  redis.call('HSET', KEYS[1], 'n', failures, 'until', rests, 'tried', tried)
  local seconds = record_s
  if rests >= forever then
    seconds = unending_s
  elseif rests > now then
    seconds = record_s + math.ceil((rests - now) / 1000000)
  end
  redis.call('EXPIRE', KEYS[1], seconds)
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
  if redis.call('ZADD', KEYS[2], now + seconds * 1000000, ARGV[1]) == 1 then redis.call('PUBLISH', ARGV[2], '+' .. ARGV[1]) end
  redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -tracked - 1)
  redis.call('EXPIRE', KEYS[2], unending_s * 2)
end

--- FAIL after record
-- … limit, rest (-1: without an end). How long it rests.
local on_trial, rest = tried > now, number(ARGV[4])
if rests > 0 and rests <= now and not on_trial then failures, rests = 0, 0 end
failures, tried = failures + 1, 0
if on_trial or failures >= number(ARGV[3]) then rests = rest < 0 and forever or now + rest end
keep()
return math.max(0, rests >= forever and forever or rests - now)

--- REST after record
-- … rest.
rests = now + number(ARGV[3])
keep()
return 0

--- TRIAL after record
-- … within. 1 if it may be tried.
if rests == 0 then return 1 end
if rests > now or tried > now then return 0 end
tried = now + number(ARGV[3])
keep()
return 1

--- FORGIVE
redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('PUBLISH', ARGV[2], '-' .. ARGV[1])
return 0

--- RESTING after limits
-- KEYS: records. How long each rests.
local answer = {}
for index, key in ipairs(KEYS) do
  local rests = number(redis.call('HGET', key, 'until'))
  answer[index] = math.max(0, rests >= forever and forever or rests - now)
end
return answer

--- GET after now
-- KEYS: the entry, all entries (when last used), their sizes with the sum as ` `. ARGV: name, …
local data = redis.call('GET', KEYS[1])
if data then redis.call('ZADD', KEYS[2], 'XX', now, ARGV[1]) end
return data

--- PUT after now
-- … data, TTL in ms, bytes in all, prefix of entries. What has ended by itself is the least recently used one in time.
local size, ttl, most = #ARGV[2], number(ARGV[3]), number(ARGV[4])
local sum = number(redis.call('HGET', KEYS[3], ' '))
local function drop(name)
  sum = sum - number(redis.call('HGET', KEYS[3], name))
  redis.call('DEL', ARGV[5] .. name)
  redis.call('HDEL', KEYS[3], name)
  redis.call('ZREM', KEYS[2], name)
end
drop(ARGV[1])
if size <= most then
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ttl)
  redis.call('ZADD', KEYS[2], now, ARGV[1])
  redis.call('HSET', KEYS[3], ARGV[1], size)
  sum = sum + size
end
while sum > most do
  local oldest = redis.call('ZRANGE', KEYS[2], 0, 0)[1]
  if oldest then
    drop(oldest)
  else
    redis.call('DEL', KEYS[3])
    sum = 0
  end
end
redis.call('HSET', KEYS[3], ' ', sum)
local life = math.max(ttl, redis.call('PTTL', KEYS[3]))
redis.call('PEXPIRE', KEYS[2], life)
redis.call('PEXPIRE', KEYS[3], life)
return 0
