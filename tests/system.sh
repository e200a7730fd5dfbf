#!/bin/sh
# What pip can't install: `system.sh python PYTHON` sees to an interpreter that can make virtual environments,
# `system.sh browser` to the Chromium and the driver that the browser tests drive, `system.sh redis` to the servers that the
# tests of the Redis broker start, `system.sh node` to Node.js, npm and curl, for the browser client and other clients, `system.sh
# proxies` to the proxies that deploy/ has files for, `system.sh network` to what makes networks of the tests' own, `system.sh docs`
# to what draws the documentation's diagrams. With apt-get, and as root or with a sudo that asks for no password, it installs what is
# missing; else it says in one line what that is.
set -eu

has() {
    command -v "$1" >/dev/null 2>&1
}

# Whether we may install, and how.
apt_prefix() {
    has apt-get || return 1
    if [ "$(id -u)" = 0 ]; then
        echo env
    elif has sudo && sudo -n true 2>/dev/null; then
        echo sudo -n
    else
        return 1
    fi
}

# Installs Debian packages quietly; on failure shows what apt-get said and returns 1.
apt_install() {
    prefix=$(apt_prefix) || return 1
    echo "Installing from the system's packages: $*"
    said=$(mktemp)
    if { $prefix apt-get update -qq &&
        $prefix env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; } \
        >"$said" 2>&1 </dev/null; then
        rm -f "$said"
    else
        tail -n 20 "$said" >&2
        rm -f "$said"
        return 1
    fi
}

python() {
    if ! has "$1"; then
        echo "Missing: $1, Python 3.11 or later (another name: make PYTHON=...)" >&2
        exit 1
    fi
    if ! "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "Missing: Python 3.11 or later; $1 is $("$1" -c 'import platform; print(platform.python_version())')" \
            "(another one: make PYTHON=...)" >&2
        exit 1
    fi
    # Debian keeps venv's pip in a package of its own.
    if ! "$1" -c 'import ensurepip, venv' 2>/dev/null; then
        package=python$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv
        if ! apt_install "$package"; then
            echo "Missing: Python's venv module (Debian and Ubuntu: apt-get install $package)" >&2
            exit 1
        fi
    fi
}

browser() {
    if has chromedriver && { has chromium || has chromium-browser || has google-chrome; }; then
        return
    fi
    # The tests that need no browser are worth running all the same.
    if ! apt_install chromium chromium-driver; then
        echo "Missing for the browser tests: chromium and chromium-driver (chromedriver)" >&2
    fi
}

redis() {
    # Debian starts one with the system; where nothing may be started, its package installs all the same.
    if ! has redis-server && ! apt_install redis-server; then
        echo "Missing for the tests on Redis: redis-server" >&2
    fi
    # Valkey takes Redis's place where there is a package of it; older systems have none.
    if ! has valkey-server && has apt-cache && apt-cache show valkey-server >/dev/null 2>&1; then
        apt_install valkey-server || echo "Missing for the tests on Valkey: valkey-server" >&2
    fi
}

node() {
    missing=
    has node || missing="nodejs npm"
    has npm || missing="nodejs npm"
    has curl || missing="$missing curl"
    # shellcheck disable=SC2086
    if [ -n "$missing" ] && ! apt_install $missing; then
        echo "Missing for the browser client and the tests with other clients: $missing" >&2
    fi
}

network() {
    # Debian keeps it where only root's PATH may lead, and only root can make networks.
    if ! has ip && ! [ -x /usr/sbin/ip ] && ! apt_install iproute2; then
        echo "Missing for the tests on bad networks: ip, of iproute2" >&2
    fi
}

proxies() {
    for program in nginx haproxy caddy; do
        # Debian keeps some where only root's PATH leads.
        if ! has "$program" && ! [ -x "/usr/sbin/$program" ] && ! apt_install "$program"; then
            echo "Missing for the tests of deploy/: $program" >&2
        fi
    done
}

docs() {
    if ! has dot && ! apt_install graphviz; then
        echo "Missing for the documentation's diagrams: dot, of graphviz" >&2
        exit 1
    fi
}

"$@"
