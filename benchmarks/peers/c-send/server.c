/*
 * The plain limit in C: an epoll loop that writes each event to each socket with one `send`.
 *
 * It is the load generator's raw sender too: with `join=K` in a publish request, K events go into one `send`.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_FDS 65536
#define MAX_CHANNELS 65536
#define MAX_BATCH (1024 * 1024)

static const char HEADERS[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n";
static const char KEEPALIVE[] = "c\r\n:keepalive\n\n\r\n";

struct client {
    int fd, channel, next;           /* the next of its channel, -1 at the end */
    char *waiting;                   /* what its socket didn't take */
    size_t waiting_bytes;
};

static struct client clients[MAX_FDS];
static int first_of[MAX_CHANNELS];
static int epoll;

static struct {
    int is_on, asker, channel, channels, join;
    uint64_t count, size, first, done;
    double rate;
    int64_t began, due;
    uint64_t *seqs;
} feed;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void watch(int fd, uint32_t events, int operation) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    epoll_ctl(epoll, operation, fd, &event);
}

static void leave(int fd) {
    struct client *c = &clients[fd];
    if (c->channel >= 0) {
        int *at = &first_of[c->channel];
        while (*at != fd && *at >= 0) at = &clients[*at].next;
        if (*at == fd) *at = c->next;
    }
    free(c->waiting);
    *c = (struct client){.fd = -1, .channel = -1, .next = -1};
    close(fd);
}

static void hold(struct client *c, const char *data, size_t n) {
    c->waiting = realloc(c->waiting, c->waiting_bytes + n);
    if (!c->waiting) abort();
    memcpy(c->waiting + c->waiting_bytes, data, n);
    if (!c->waiting_bytes) watch(c->fd, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
    c->waiting_bytes += n;
}

static void write_to(struct client *c, const char *data, size_t n) {
    if (c->waiting_bytes) {
        hold(c, data, n);
        return;
    }
    ssize_t sent = send(c->fd, data, n, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno != EAGAIN) return;
    if (sent < 0) sent = 0;
    if ((size_t)sent < n) hold(c, data + sent, n - (size_t)sent);
}

static void flush(struct client *c) {
    ssize_t sent = send(c->fd, c->waiting, c->waiting_bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent <= 0) return;
    c->waiting_bytes -= (size_t)sent;
    memmove(c->waiting, c->waiting + sent, c->waiting_bytes);
    if (!c->waiting_bytes) {
        free(c->waiting);
        c->waiting = NULL;
        watch(c->fd, EPOLLIN, EPOLL_CTL_MOD);
    }
}

static uint64_t number(const char *query, const char *name, uint64_t otherwise) {
    char key[32];
    snprintf(key, sizeof key, "%s=", name);
    for (const char *p = strstr(query, key); p; p = strstr(p + 1, key))
        if (p[-1] == '?' || p[-1] == '&') return strtoull(p + strlen(key), NULL, 10);
    return otherwise;
}

static int channel_of(const char *query) {
    const char *p = strstr(query, "channel=c");
    return p ? atoi(p + 9) % MAX_CHANNELS : 0;
}

static void request(int fd, char *text) {
    struct client *c = &clients[fd];
    if (!strncmp(text, "GET /subscribe", 14)) {
        c->channel = channel_of(text);
        c->next = first_of[c->channel];
        first_of[c->channel] = fd;
        write_to(c, HEADERS, sizeof HEADERS - 1);
        return;
    }
    feed.is_on = 1;
    feed.asker = fd;
    feed.channel = channel_of(text);
    feed.channels = (int)number(text, "channels", 1);
    feed.count = number(text, "count", 1);
    feed.size = number(text, "size", 100);
    feed.first = number(text, "first", 1);
    feed.rate = (double)number(text, "rate", 0);
    feed.join = (int)number(text, "join", 1);
    feed.done = 0;
    feed.began = feed.due = now_ns();
    free(feed.seqs);
    feed.seqs = calloc((size_t)feed.channels, sizeof *feed.seqs);
    for (int i = 0; i < feed.channels; i++) feed.seqs[i] = feed.first - 1;
}

static void publish(void) {
    static char chunk[MAX_BATCH + 64], batch[MAX_BATCH];
    int index = feed.channels > 1 ? (int)(random() % feed.channels) : 0;
    int channel = feed.channels > 1 ? index : feed.channel;
    size_t n = 0;
    for (int i = 0; i < feed.join && feed.done < feed.count && n + feed.size + 16 < MAX_BATCH; i++) {
        n += (size_t)sprintf(batch + n, "data: ");
        size_t end = n + feed.size;
        n += (size_t)sprintf(batch + n, "%llu %lld ", (unsigned long long)++feed.seqs[index], (long long)now_ns());
        while (n < end) batch[n++] = 'x';
        batch[n++] = '\n';
        batch[n++] = '\n';
        feed.done++;
    }
    size_t head = (size_t)sprintf(chunk, "%zx\r\n", n);
    memcpy(chunk + head, batch, n);
    memcpy(chunk + head + n, "\r\n", 2);
    for (int fd = first_of[channel]; fd >= 0; fd = clients[fd].next) write_to(&clients[fd], chunk, head + n + 2);
    if (feed.rate > 0) feed.due = feed.began + (int64_t)((double)feed.done / feed.rate * 1e9);
    if (feed.done >= feed.count) {
        char body[128], answer[256];
        int size = sprintf(body, "{\"published\": %llu, \"seconds\": %.6f}", (unsigned long long)feed.done, (double)(now_ns() - feed.began) / 1e9);
        int bytes = sprintf(answer, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", size, body);
        write_to(&clients[feed.asker], answer, (size_t)bytes);
        feed.is_on = 0;
    }
}

int main(void) {
    const char *port = getenv("BENCH_PORT");
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port ? port : "0")), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 4096) < 0) {
        perror("bind");
        return 1;
    }
    for (int i = 0; i < MAX_FDS; i++) clients[i] = (struct client){.fd = -1, .channel = -1, .next = -1};
    for (int i = 0; i < MAX_CHANNELS; i++) first_of[i] = -1;
    epoll = epoll_create1(0);
    watch(listener, EPOLLIN, EPOLL_CTL_ADD);
    static struct epoll_event events[1024];
    int64_t keepalive_at = now_ns() + 15000000000;
    for (;;) {
        int64_t now = now_ns(), due = feed.is_on ? feed.due : keepalive_at;
        int n = epoll_wait(epoll, events, 1024, due > now ? (int)((due - now) / 1000000) : 0);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                int new;
                while ((new = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    if (new >= MAX_FDS) {
                        close(new);
                        continue;
                    }
                    setsockopt(new, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                    clients[new].fd = new;
                    watch(new, EPOLLIN, EPOLL_CTL_ADD);
                }
                continue;
            }
            if (events[i].events & EPOLLOUT && clients[fd].waiting_bytes) flush(&clients[fd]);
            if (events[i].events & ~(uint32_t)EPOLLOUT) {
                char text[8192];
                ssize_t got = recv(fd, text, sizeof text - 1, MSG_DONTWAIT);
                if (got < 0 && errno == EAGAIN) continue;
                if (got <= 0) {
                    leave(fd);
                } else {
                    text[got] = 0;
                    request(fd, text);
                }
            }
        }
        now = now_ns();
        if (feed.is_on && now >= feed.due) publish();
        if (now >= keepalive_at) {
            keepalive_at = now + 15000000000;
            for (int i = 0; i < MAX_FDS; i++)
                if (clients[i].channel >= 0) write_to(&clients[i], KEEPALIVE, sizeof KEEPALIVE - 1);
        }
    }
}
