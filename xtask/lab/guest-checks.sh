# How guests check things: one `guest: WHAT: RESULT` line a check, for the host and xtask to read.
check() { # check WHAT COMMAND…
    what=$1
    shift
    if "$@"; then
        echo "guest: $what: ok"
    else
        echo "guest: $what: FAILED"
        return 1
    fi
}
sum() { sha256sum | cut -c1-64; }
