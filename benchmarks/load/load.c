/*
 * The load generator: opens event streams, checks every byte of them, and measures how long each event took.
 *
 *   load HOST PORT
 *
 * It reads commands, one a line, and prints one line of JSON for each when it is done. A command is a word and settings, `key=value`,
 * separated by spaces:
 *
 *   phase streams=N [path=P] [channels=C] [resume=1] [in_flight=K]   opens streams until N are open; P may hold {channel} and {stream}
 *         [each=E] [total=T] [ends=1] [size=S]          waits for E events on each, or T on all; for each stream's clean end
 *         [get=PATH]                                    asks for PATH when the streams are open; what it publishes is then counted
 *         [post=PATH] [posts=N] [rate=R] [first=F]      or publishes itself, one POST at a time, to {channel}
 *         [warm=PATH] [heard=1]                         before that asks for PATH again and again until each stream has had a byte of
 *                                                       its body; or only waits for that
 *         [spin=1]                                      never sleeps while it waits, and for 0.2 s before it asks or publishes
 *         [settle=MS] [timeout=S]
 *   drop                                                closes all streams
 *   quit
 *
 * An event's data is `<seq> <ns> xxx...`, perhaps in quotes: its number in its channel, from 1, and the CLOCK_MONOTONIC nanosecond at
 * which it was published. Number 0 is a warm-up and isn't counted. Other data (open events and the like) is counted apart.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define MAX_STREAMS 60000
#define MAX_LINE 8192
#define MAX_ID 160
#define BUFFER (256 * 1024)
#define STREAMS_PER_ADDRESS 5000
#define BEGUN_AT_ONCE 8
#define AWAKE_NS 200000000
#define PAUSE_NS 10000

enum framing { UNKNOWN, CHUNKED, UNTIL_CLOSE };
enum state { UNUSED, CONNECTING, HEADERS, OPEN, ENDED, FAILED };
enum chunk { SIZE, DATA, AFTER_DATA, TRAILER, OVER };

struct stream {
    int fd, index;
    enum state state;
    enum framing framing;
    enum chunk chunk;
    uint64_t chunk_left;
    unsigned chunk_digits;
    int heard;                       /* a byte of the body has come */
    /* The event that is being read. */
    int has_data, is_counted, is_reset, has_fields;
    uint64_t seq, stamp, data_bytes;
    /* What was seen: the next number, and which of the 64 before it came. */
    uint64_t next, window, events;
    char *line;                      /* a line, or the headers, of which a part has come */
    size_t line_bytes;
    char id[MAX_ID], event_id[MAX_ID];
    int has_event_id;
};

struct counts {
    uint64_t opened, refused, bad_status, bad_headers, bad_framing, malformed, wrong_size;
    uint64_t events, warm, others, resets, gaps, lost, duplicates, reorders, ended, cut, extra;
    uint64_t bytes, reads, published;
    int64_t began, open_at, first_stamp, last_at;
};

static struct stream *streams;
static int used, goal;               /* streams in the table, and how many are to be open */
static int busy;                     /* connecting, or waiting for headers */
static int epoll;
static struct sockaddr_in server;
static struct counts counts;
static char buffer[BUFFER];
static uint64_t want_size;
static uint64_t want_each;

/* Microseconds: exact below 1024, then 128 steps for each doubling. */
#define STEPS 128
static uint64_t histogram[1024 + 40 * STEPS];
static int64_t longest;
static double latency_sum;

/* The connection that triggers, and the one that posts. */
struct caller {
    int fd, is_posting, is_waiting;
    char text[MAX_LINE];
    size_t bytes;
    uint64_t left, seq;
    double rate;
    int64_t began, due;
    uint64_t done, failed, size;
    char path[512];
    int channels;
    uint64_t *channel_seq;
};
static struct caller getter = {.fd = -1}, poster = {.fd = -1};

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int64_t cpu_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Looking again at once, all the time, would keep the server's sends from the locks that both need. */
static void spin_a_little(void) {
    for (int64_t until = now_ns() + PAUSE_NS; now_ns() < until;) {
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#endif
    }
}

static void die(const char *what) {
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(2);
}

static void watch(int fd, uint32_t events, uint64_t key, int operation) {
    struct epoll_event event = {.events = events, .data.u64 = key};
    if (epoll_ctl(epoll, operation, fd, &event) < 0) die("epoll_ctl");
}

enum { KEY_STDIN = MAX_STREAMS + 1, KEY_GETTER, KEY_POSTER };

static void note_latency(int64_t ns) {
    if (ns < 0) ns = 0;
    if (ns > longest) longest = ns;
    latency_sum += (double)ns;
    uint64_t us = (uint64_t)ns / 1000;
    if (us < 1024) {
        histogram[us]++;
    } else {
        int doubling = 63 - __builtin_clzll(us);             /* 10 and up */
        uint64_t step = (us - (1ull << doubling)) >> (doubling - 7);
        histogram[1024 + (doubling - 10) * STEPS + step]++;
    }
}

static double percentile(double part) {
    uint64_t total = 0, seen = 0;
    size_t n = sizeof histogram / sizeof *histogram;
    for (size_t i = 0; i < n; i++) total += histogram[i];
    if (!total) return 0;
    uint64_t rank = (uint64_t)(part * (double)(total - 1)) + 1;
    for (size_t i = 0; i < n; i++) {
        seen += histogram[i];
        if (seen >= rank) {
            if (i < 1024) return (double)i + 0.5;
            size_t doubling = (i - 1024) / STEPS + 10, step = (i - 1024) % STEPS;
            return (double)(1ull << doubling) + ((double)step + 0.5) * (double)(1ull << (doubling - 7));
        }
    }
    return (double)longest / 1000;
}

/* ---- Events ---- */

static void number(struct stream *s, uint64_t seq) {
    if (!s->next) s->next = 1;
    if (seq >= s->next) {
        uint64_t ahead = seq - s->next;
        if (ahead) {
            counts.gaps++;
            counts.lost += ahead;
        }
        s->window = ahead + 1 >= 64 ? 1 : (s->window << (ahead + 1)) | 1;
        s->next = seq + 1;
        return;
    }
    uint64_t behind = s->next - 1 - seq;
    if (behind < 64 && !(s->window >> behind & 1)) {
        s->window |= 1ull << behind;
        counts.reorders++;
        counts.lost--;
    } else {
        counts.duplicates++;
    }
}

static void dispatch(struct stream *s, int64_t at) {
    if (s->has_event_id) {
        memcpy(s->id, s->event_id, sizeof s->id);
        s->has_event_id = 0;
    }
    if (s->has_data) {
        if (s->is_reset) {
            counts.resets++;
        } else if (!s->is_counted) {
            counts.others++;
        } else if (s->seq == 0) {
            counts.warm++;
        } else {
            if (want_size && s->data_bytes != want_size) counts.wrong_size++;
            if (!counts.first_stamp || (int64_t)s->stamp < counts.first_stamp) counts.first_stamp = (int64_t)s->stamp;
            counts.last_at = at;
            counts.events++;
            s->events++;
            if (want_each && s->events > want_each) counts.extra++;
            note_latency(at - (int64_t)s->stamp);
            number(s, s->seq);
        }
    }
    s->has_data = s->is_counted = s->is_reset = s->has_fields = 0;
    s->data_bytes = 0;
}

static void data(struct stream *s, const char *p, size_t n) {
    if (s->has_data) {               /* a second data line: no event of ours has one */
        s->is_counted = 0;
        return;
    }
    s->has_data = 1;
    const char *end = p + n;
    if (n > 1 && *p == '"' && end[-1] == '"') p++, end--;
    s->data_bytes = (uint64_t)(end - p);
    uint64_t seq = 0, stamp = 0;
    const char *start = p;
    while (p < end && *p >= '0' && *p <= '9') seq = seq * 10 + (uint64_t)(*p++ - '0');
    if (p == start || p == end || *p++ != ' ') return;
    start = p;
    while (p < end && *p >= '0' && *p <= '9') stamp = stamp * 10 + (uint64_t)(*p++ - '0');
    if (p == start || (p < end && *p != ' ')) return;
    if (p < end && end[-1] != 'x' && end[-1] != ' ') return;
    s->is_counted = 1;
    s->seq = seq;
    s->stamp = stamp;
}

static void field(struct stream *s, const char *p, size_t n, int64_t at) {
    if (n && p[n - 1] == '\r') n--;
    if (!n) {
        dispatch(s, at);
        return;
    }
    if (*p == ':') return;
    const char *colon = memchr(p, ':', n);
    size_t name = colon ? (size_t)(colon - p) : n;
    const char *value = colon ? colon + 1 : p + n;
    size_t value_bytes = colon ? n - name - 1 : 0;
    if (value_bytes && *value == ' ') value++, value_bytes--;
    s->has_fields = 1;
    if (name == 4 && !memcmp(p, "data", 4)) {
        data(s, value, value_bytes);
    } else if (name == 2 && !memcmp(p, "id", 2)) {
        if (value_bytes < MAX_ID) {
            memcpy(s->event_id, value, value_bytes);
            s->event_id[value_bytes] = 0;
            s->has_event_id = 1;
        }
    } else if (name == 5 && !memcmp(p, "event", 5)) {
        s->is_reset = memmem(value, value_bytes, "reset", 5) != NULL;
    } else if (!(name == 5 && !memcmp(p, "retry", 5))) {
        counts.malformed++;
    }
}

static void keep(struct stream *s, const char *p, size_t n) {
    if (s->line_bytes + n > MAX_LINE) {
        counts.malformed++;
        s->line_bytes = 0;
        return;
    }
    if (!s->line && !(s->line = malloc(MAX_LINE))) die("malloc");
    memcpy(s->line + s->line_bytes, p, n);
    s->line_bytes += n;
}

static void forget(struct stream *s) {
    free(s->line);
    s->line = NULL;
    s->line_bytes = 0;
}

static void body(struct stream *s, const char *p, size_t n, int64_t at) {
    const char *end = p + n;
    s->heard = 1;
    while (p < end) {
        const char *lf = memchr(p, '\n', (size_t)(end - p));
        if (!lf) {
            keep(s, p, (size_t)(end - p));
            return;
        }
        if (s->line_bytes) {
            keep(s, p, (size_t)(lf - p));
            field(s, s->line, s->line_bytes, at);
            forget(s);
        } else {
            field(s, p, (size_t)(lf - p), at);
        }
        p = lf + 1;
    }
}

/* ---- HTTP ---- */

static void close_stream(struct stream *s, enum state state) {
    if (s->state == CONNECTING || s->state == HEADERS) busy--;
    if (s->fd >= 0) close(s->fd);
    s->fd = -1;
    s->state = state;
    forget(s);
}

static int hex(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* Takes the chunk framing off. Returns 0 if it is wrong. */
static int unchunk(struct stream *s, const char *p, size_t n, int64_t at) {
    const char *end = p + n;
    while (p < end) {
        switch (s->chunk) {
        case SIZE: {
            int digit = hex(*p);
            if (digit >= 0 && s->chunk_digits < 15) {
                s->chunk_left = s->chunk_left * 16 + (uint64_t)digit;
                s->chunk_digits++;
                p++;
            } else if (*p == '\r' && s->chunk_digits && s->chunk_digits < 100) {
                s->chunk_digits |= 128;
                p++;
            } else if (*p == '\n' && s->chunk_digits & 128) {
                s->chunk_digits = 0;
                s->chunk = s->chunk_left ? DATA : TRAILER;
                p++;
            } else {
                return 0;
            }
            break;
        }
        case DATA: {
            size_t part = (size_t)(end - p) < s->chunk_left ? (size_t)(end - p) : s->chunk_left;
            body(s, p, part, at);
            p += part;
            s->chunk_left -= part;
            if (!s->chunk_left) s->chunk = AFTER_DATA;
            break;
        }
        case AFTER_DATA:
        case TRAILER:                /* CR LF, of which the CR sets a mark */
            if (*p == '\r' && !s->chunk_digits) {
                s->chunk_digits = 1;
            } else if (*p == '\n' && s->chunk_digits) {
                s->chunk_digits = 0;
                s->chunk = s->chunk == TRAILER ? OVER : SIZE;
            } else {
                return 0;
            }
            p++;
            break;
        case OVER:
            return 0;
        }
    }
    return 1;
}

static const char *header(const char *text, const char *name) {
    size_t n = strlen(name);
    for (const char *line = strstr(text, "\r\n"); line && line[2] != '\r'; line = strstr(line + 2, "\r\n")) {
        if (!strncasecmp(line + 2, name, n) && line[2 + n] == ':') {
            const char *value = line + 3 + n;
            while (*value == ' ') value++;
            return value;
        }
    }
    return NULL;
}

/* Reads the status and headers. Returns 0 if they aren't those of a stream. */
static int opened(struct stream *s, char *text) {
    int status = 0;
    if (sscanf(text, "HTTP/1.%*1d %d", &status) != 1 || status != 200) {
        counts.bad_status++;
        return 0;
    }
    const char *type = header(text, "Content-Type"), *coding = header(text, "Transfer-Encoding");
    if (!type || strncasecmp(type, "text/event-stream", 17) || header(text, "Content-Length") || header(text, "Content-Encoding")) {
        counts.bad_headers++;
        return 0;
    }
    s->framing = coding && !strncasecmp(coding, "chunked", 7) ? CHUNKED : UNTIL_CLOSE;
    s->state = OPEN;
    busy--;
    counts.opened++;
    return 1;
}

static void arrived(struct stream *s, char *p, size_t n, int64_t at) {
    if (s->state == HEADERS) {
        keep(s, p, n);
        char *end = s->line ? memmem(s->line, s->line_bytes, "\r\n\r\n", 4) : NULL;
        if (!end) return;
        char head[MAX_LINE + 1];
        size_t head_bytes = (size_t)(end - s->line) + 4, rest = s->line_bytes - head_bytes;
        memcpy(head, s->line, head_bytes);
        head[head_bytes] = 0;
        forget(s);
        counts.open_at = at;
        if (!opened(s, head)) {
            close_stream(s, FAILED);
            return;
        }
        p += n - rest;
        n = rest;
        if (!n) return;
    }
    if (s->framing == CHUNKED) {
        if (!unchunk(s, p, n, at)) {
            counts.bad_framing++;
            close_stream(s, FAILED);
        }
    } else {
        body(s, p, n, at);
    }
}

static void finished(struct stream *s) {
    int is_clean = s->state == OPEN && !s->has_fields && !s->line_bytes && (s->framing == UNTIL_CLOSE || s->chunk == OVER);
    if (s->state == CONNECTING || s->state == HEADERS) {
        counts.refused++;
    } else if (is_clean) {
        counts.ended++;
    } else {
        counts.cut++;
    }
    close_stream(s, is_clean ? ENDED : FAILED);
}

static void readable(struct stream *s) {
    for (;;) {
        ssize_t n = recv(s->fd, buffer, sizeof buffer, 0);
        counts.reads++;
        if (n < 0) {
            if (errno == EAGAIN || errno == EINTR) return;
            finished(s);
            return;
        }
        if (!n) {
            finished(s);
            return;
        }
        counts.bytes += (uint64_t)n;
        arrived(s, buffer, (size_t)n, now_ns());
        if (s->fd < 0) return;
        if (s->state == OPEN && s->framing == CHUNKED && s->chunk == OVER) {
            finished(s);
            return;
        }
        if ((size_t)n < sizeof buffer) return;
    }
}

/* ---- Opening ---- */

static void expand(char *into, size_t size, const char *path, int stream, int channels) {
    size_t n = 0;
    while (*path && n + 16 < size) {
        if (!strncmp(path, "{channel}", 9)) {
            n += (size_t)snprintf(into + n, size - n, "c%d", stream % channels);
            path += 9;
        } else if (!strncmp(path, "{stream}", 8)) {
            n += (size_t)snprintf(into + n, size - n, "%d", stream);
            path += 8;
        } else {
            into[n++] = *path++;
        }
    }
    into[n] = 0;
}

static int connect_from(int index) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    if (fd < 0) die("socket");
    if ((ntohl(server.sin_addr.s_addr) >> 24) == 127) {
        /* Addresses of our own, so that no run is short of ports: 127.0.0.2 and up. */
        struct sockaddr_in local = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000002 + (uint32_t)(index / STREAMS_PER_ADDRESS))};
        setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
        if (bind(fd, (struct sockaddr *)&local, sizeof local) < 0) die("bind");
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(fd, (struct sockaddr *)&server, sizeof server) < 0 && errno != EINPROGRESS) {
        close(fd);
        return -1;
    }
    return fd;
}

/* Opens a stream; one that resumes goes on where it was, another begins with event 1. */
static void begin(int index, int resume) {
    struct stream *s = &streams[index];
    struct stream before = *s;
    memset(s, 0, sizeof *s);
    s->index = index;
    if (resume) {
        s->next = before.next;
        s->window = before.window;
        memcpy(s->id, before.id, sizeof s->id);
    }
    s->state = CONNECTING;
    busy++;
    s->fd = connect_from(index);
    if (s->fd < 0) {
        counts.refused++;
        close_stream(s, FAILED);
        return;
    }
    watch(s->fd, EPOLLOUT, (uint64_t)index, EPOLL_CTL_ADD);
}

static void request(struct stream *s, const char *path, int channels, int resume) {
    char target[1024], text[2048];
    expand(target, sizeof target, path, s->index, channels);
    int n = snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\nCache-Control: no-cache\r\n%s%s%s\r\n",
                     target, resume && s->id[0] ? "Last-Event-ID: " : "", resume ? s->id : "", resume && s->id[0] ? "\r\n" : "");
    if (send(s->fd, text, (size_t)n, MSG_NOSIGNAL) != n) {
        counts.refused++;
        close_stream(s, FAILED);
        return;
    }
    s->state = HEADERS;
    watch(s->fd, EPOLLIN, (uint64_t)s->index, EPOLL_CTL_MOD);
}

/* ---- Publishing ---- */

static void hang_up(struct caller *c) {
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
    c->is_waiting = 0;
}

static void call(struct caller *c, uint64_t key, const char *text, size_t n) {
    if (c->fd < 0) {
        c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        int on = 1;
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (connect(c->fd, (struct sockaddr *)&server, sizeof server) < 0) {
            c->failed++;
            hang_up(c);
            return;
        }
        watch(c->fd, EPOLLIN, key, EPOLL_CTL_ADD);
    }
    c->bytes = 0;
    c->is_waiting = 1;
    if (send(c->fd, text, n, MSG_NOSIGNAL) != (ssize_t)n) {
        c->failed++;
        hang_up(c);
    }
}

static void get(const char *path) {
    char text[1024];
    int n = snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", path);
    hang_up(&getter);
    call(&getter, KEY_GETTER, text, (size_t)n);
}

static void post(void) {
    char text[MAX_LINE], path[1024], event[4096];
    int channel = poster.channels > 1 ? (int)(random() % poster.channels) : 0;
    uint64_t seq = ++poster.channel_seq[channel];
    expand(path, sizeof path, poster.path, channel, poster.channels);
    int size = snprintf(event, sizeof event, "%llu %lld ", (unsigned long long)seq, (long long)now_ns());
    while ((uint64_t)size < poster.size && size < (int)sizeof event) event[size++] = 'x';
    int n = snprintf(text, sizeof text, "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%.*s",
                     path, size, size, event);
    poster.left--;
    poster.due += poster.rate > 0 ? (int64_t)(1e9 / poster.rate) : 0;
    call(&poster, KEY_POSTER, text, (size_t)n);
}

/* An answer is whole when its headers and as many bytes as they say have come; the getter's also when the connection ends. */
static void answered(struct caller *c) {
    ssize_t n = recv(c->fd, c->text + c->bytes, sizeof c->text - 1 - c->bytes, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
        if (c->is_waiting) c->failed++;
        hang_up(c);
        return;
    }
    c->bytes += (size_t)n;
    c->text[c->bytes] = 0;
    char *end = strstr(c->text, "\r\n\r\n");
    if (!end) return;
    const char *length = header(c->text, "Content-Length");
    int is_whole = length ? c->bytes >= (size_t)(end + 4 - c->text) + (size_t)atol(length) : strstr(end + 4, "0\r\n\r\n") != NULL;
    if (!is_whole) return;
    int status = 0;
    sscanf(c->text, "HTTP/1.%*1d %d", &status);
    if (status / 100 == 2) c->done++;
    else c->failed++;
    c->is_waiting = 0;
    if (c == &getter) hang_up(c);
}

/* ---- A phase ---- */

struct phase {
    int streams, channels, resume, in_flight, ends, heard;
    uint64_t each, total, size, posts, first;
    double rate, timeout, settle;
    int spin;
    char path[512], get[512], post[512], warm[512];
};

static int everyone_has(const struct phase *p) {
    for (int i = 0; i < goal; i++) {
        const struct stream *s = &streams[i];
        if (s->state == FAILED) continue;        /* counted; waiting longer doesn't bring it back */
        if (s->events < p->each) return 0;
        if (p->ends && s->state != ENDED) return 0;
    }
    return 1;
}

static int everyone_heard(void) {
    for (int i = 0; i < goal; i++)
        if (streams[i].state != FAILED && !streams[i].heard) return 0;
    return 1;
}

static void report(const struct phase *p, double took, double cpu, int timed_out) {
    uint64_t missing = 0, open_now = 0;
    for (int i = 0; i < goal; i++) {
        if (streams[i].events < p->each) missing += p->each - streams[i].events;
        open_now += streams[i].state == OPEN;
    }
    if (p->total && counts.events < p->total) missing = p->total - counts.events;
    double span = counts.first_stamp ? (double)(counts.last_at - counts.first_stamp) / 1e9 : 0;
    printf("{\"streams\":%d,\"opened\":%llu,\"open\":%llu,\"open_seconds\":%.6f,\"seconds\":%.6f,\"timed_out\":%s,", goal,
           (unsigned long long)counts.opened, (unsigned long long)open_now,
           counts.open_at ? (double)(counts.open_at - counts.began) / 1e9 : 0, took, timed_out ? "true" : "false");
#define COUNT(name) printf("\"" #name "\":%llu,", (unsigned long long)counts.name)
    COUNT(refused); COUNT(bad_status); COUNT(bad_headers); COUNT(bad_framing); COUNT(malformed); COUNT(wrong_size);
    COUNT(events); COUNT(warm); COUNT(others); COUNT(resets); COUNT(gaps); COUNT(lost); COUNT(duplicates); COUNT(reorders);
    COUNT(ended); COUNT(cut); COUNT(extra); COUNT(bytes); COUNT(reads);
    printf("\"missing\":%llu,\"calls\":%llu,\"calls_failed\":%llu,\"span\":%.6f,\"until_last\":%.6f,\"cpu\":%.3f,"
           "\"latency_us\":{\"mean\":%.1f,\"p50\":%.1f,\"p90\":%.1f,\"p99\":%.1f,\"p999\":%.1f,\"max\":%.1f}}\n",
           (unsigned long long)missing, (unsigned long long)(getter.done + poster.done), (unsigned long long)(getter.failed + poster.failed),
           span, counts.last_at ? (double)(counts.last_at - counts.began) / 1e9 : 0, cpu,
           counts.events ? latency_sum / (double)counts.events / 1000 : 0, percentile(.5), percentile(.9), percentile(.99), percentile(.999),
           (double)longest / 1000);
    fflush(stdout);
}

static void run(struct phase *p) {
    memset(&counts, 0, sizeof counts);
    memset(histogram, 0, sizeof histogram);
    longest = 0;
    latency_sum = 0;
    goal = p->streams;
    want_size = p->size;
    want_each = p->each;
    for (int i = 0; i < goal; i++) streams[i].events = 0;
    getter.done = getter.failed = poster.done = poster.failed = 0;
    int64_t cpu_before = cpu_ns();
    counts.began = now_ns();
    int64_t deadline = counts.began + (int64_t)(p->timeout * 1e9), complete_at = 0, warmed_at = 0, looked_at = 0;
    int next = 0, is_called = 0, timed_out = 0;
    /* Processor time of looking in vain. */
    int64_t spun = 0, spins_since = 0;
    static struct epoll_event events[1024];
    for (;;) {
        /* A few at a time: what has come to those that are open is read in between. */
        int begun = 0;
        while (next < goal && (busy < p->in_flight || p->warm[0]) && begun < BEGUN_AT_ONCE) {
            enum state state = streams[next].state;
            if (state != OPEN && state != HEADERS && state != CONNECTING) {
                begin(next, p->resume);
                begun++;
            }
            next++;
            if (next > used) used = next;
        }
        int all_open = next == goal && !busy;
        int64_t now = now_ns();
        if ((p->warm[0] || p->heard) && !is_called && next == goal && now - looked_at > 1000000) {
            looked_at = now;
            all_open = everyone_heard();
            if (!all_open && p->warm[0] && !getter.is_waiting && now - warmed_at > 200000000) {
                /* Servers that send no headers before the first event. */
                warmed_at = now;
                get(p->warm);
            }
        } else if ((p->warm[0] || p->heard) && !is_called) {
            all_open = 0;
        }
        if (all_open && !is_called && !getter.is_waiting && (!p->spin || now - counts.began >= AWAKE_NS)) {
            is_called = 1;
            /* What was waited for to be awake isn't part of it. */
            if (p->spin && (p->get[0] || p->post[0])) counts.began = now;
            if (p->get[0]) get(p->get);
            if (p->post[0]) {
                poster.left = p->posts;
                poster.rate = p->rate;
                poster.size = p->size;
                poster.channels = p->channels;
                snprintf(poster.path, sizeof poster.path, "%s", p->post);
                free(poster.channel_seq);
                poster.channel_seq = calloc((size_t)p->channels, sizeof *poster.channel_seq);
                for (int i = 0; i < p->channels; i++) poster.channel_seq[i] = p->first - 1;
                poster.due = poster.began = now;
            }
        }
        int pause = next < goal && (busy < p->in_flight || p->warm[0]) ? 0 : 20;
        if (poster.left && !poster.is_waiting) {
            if (now >= poster.due) {
                post();
                pause = 0;
            } else {
                pause = pause ? (int)((poster.due - now) / 1000000) : 0;
            }
        }
        /* Whether everyone has everything is looked at when enough has come for that, at most each millisecond. */
        int enough = p->total ? counts.events >= p->total : counts.events >= p->each * (uint64_t)goal || now - looked_at > 100000000;
        if (is_called && !complete_at && enough && !poster.left && !poster.is_waiting) {
            looked_at = now;
            if (all_open && everyone_has(p) && (!p->total || counts.events >= p->total)) complete_at = now;
        }
        if (complete_at && now - complete_at >= (int64_t)(p->settle * 1e6) && !getter.is_waiting) break;
        if (now > deadline) {
            timed_out = !complete_at;
            break;
        }
        int n = epoll_wait(epoll, events, 1024, p->spin ? 0 : pause);
        if (n == 0 && p->spin) {
            if (!spins_since) spins_since = cpu_ns();
            spin_a_little();
        }
        if (n > 0 && spins_since) {
            spun += cpu_ns() - spins_since;
            spins_since = 0;
        }
        if (n < 0 && errno != EINTR) die("epoll_wait");
        for (int i = 0; i < n; i++) {
            uint64_t key = events[i].data.u64;
            if (key == KEY_STDIN) continue;
            if (key == KEY_GETTER) {
                if (getter.fd >= 0) answered(&getter);
            } else if (key == KEY_POSTER) {
                if (poster.fd >= 0) answered(&poster);
            } else {
                struct stream *s = &streams[key];
                if (s->fd < 0) continue;
                if (s->state == CONNECTING) {
                    int error = 0;
                    socklen_t length = sizeof error;
                    getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &length);
                    if (error) {
                        counts.refused++;
                        close_stream(s, FAILED);
                    } else {
                        request(s, p->path, p->channels, p->resume);
                    }
                } else {
                    readable(s);
                }
            }
        }
    }
    if (spins_since) spun += cpu_ns() - spins_since;
    report(p, (double)((complete_at ? complete_at : now_ns()) - counts.began) / 1e9, (double)(cpu_ns() - cpu_before - spun) / 1e9, timed_out);
}

static void text(char *into, size_t size, const char *value) { snprintf(into, size, "%s", value); }

static int parse(char *line, struct phase *p) {
    for (char *word = strtok(line, " \n"); word; word = strtok(NULL, " \n")) {
        char *value = strchr(word, '=');
        if (!value) continue;
        *value++ = 0;
#define IS(name) !strcmp(word, name)
        if (IS("streams")) p->streams = atoi(value);
        else if (IS("channels")) p->channels = atoi(value);
        else if (IS("resume")) p->resume = atoi(value);
        else if (IS("in_flight")) p->in_flight = atoi(value);
        else if (IS("heard")) p->heard = atoi(value);
        else if (IS("ends")) p->ends = atoi(value);
        else if (IS("each")) p->each = strtoull(value, NULL, 10);
        else if (IS("total")) p->total = strtoull(value, NULL, 10);
        else if (IS("size")) p->size = strtoull(value, NULL, 10);
        else if (IS("posts")) p->posts = strtoull(value, NULL, 10);
        else if (IS("first")) p->first = strtoull(value, NULL, 10);
        else if (IS("rate")) p->rate = atof(value);
        else if (IS("timeout")) p->timeout = atof(value);
        else if (IS("settle")) p->settle = atof(value);
        else if (IS("spin")) p->spin = atoi(value);
        else if (IS("path")) text(p->path, sizeof p->path, value);
        else if (IS("get")) text(p->get, sizeof p->get, value);
        else if (IS("post")) text(p->post, sizeof p->post, value);
        else if (IS("warm")) text(p->warm, sizeof p->warm, value);
        else return 0;
    }
    return p->streams >= 0 && p->streams <= MAX_STREAMS && p->channels > 0;
}

static void drop(void) {
    for (int i = 0; i < used; i++)
        if (streams[i].fd >= 0) close_stream(&streams[i], UNUSED);
}

/* Between phases the streams are read too, so that keepalives don't pile up; what is wrong then shows in the next phase. */
static int wait_for_command(void) {
    static struct epoll_event events[256];
    for (;;) {
        int n = epoll_wait(epoll, events, 256, -1), has_command = 0;
        if (n < 0 && errno != EINTR) die("epoll_wait");
        for (int i = 0; i < n; i++) {
            uint64_t key = events[i].data.u64;
            if (key == KEY_STDIN) has_command = 1;
            else if (key == KEY_GETTER) hang_up(&getter);
            else if (key == KEY_POSTER) hang_up(&poster);
            else if (streams[key].fd >= 0 && streams[key].state != CONNECTING) readable(&streams[key]);
            else if (streams[key].fd >= 0) close_stream(&streams[key], FAILED);
        }
        if (has_command) return 1;
    }
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: load HOST PORT\n");
        return 2;
    }
    server.sin_family = AF_INET;
    server.sin_port = htons((uint16_t)atoi(argv[2]));
    if (inet_pton(AF_INET, argv[1], &server.sin_addr) != 1) die("host");
    struct rlimit limit;
    if (!getrlimit(RLIMIT_NOFILE, &limit)) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    streams = calloc(MAX_STREAMS, sizeof *streams);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (!streams || epoll < 0) die("start");
    for (int i = 0; i < MAX_STREAMS; i++) streams[i].fd = -1;
    watch(0, EPOLLIN, KEY_STDIN, EPOLL_CTL_ADD);
    char line[8192];
    struct phase last = {.in_flight = 500, .channels = 1, .path = "/subscribe?channel={channel}"};
    /* Unbuffered: epoll knows only of what is still in the pipe. */
    setvbuf(stdin, NULL, _IONBF, 0);
    while (wait_for_command() && fgets(line, sizeof line, stdin)) {
        if (!strncmp(line, "phase ", 6)) {
            struct phase p = last;
            p.each = p.total = p.posts = 0;
            p.rate = 0;
            p.ends = p.resume = p.heard = 0;
            p.first = 1;
            p.timeout = 60;
            p.settle = 100;
            p.get[0] = p.post[0] = p.warm[0] = 0;
            if (!parse(line + 6, &p)) {
                fprintf(stderr, "load: not understood\n");
                return 2;
            }
            last = p;
            run(&p);
        } else if (!strncmp(line, "drop", 4)) {
            drop();
            printf("{}\n");
            fflush(stdout);
        } else {
            break;
        }
    }
    drop();
    return 0;
}
