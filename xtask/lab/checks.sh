# How the scripts that run in the lab's host check things, before each of them: one `host: WHAT: RESULT` line a check, and `failed`.
failed=0
check() { # check WHAT COMMAND…
    what=$1
    shift
    if "$@"; then
        echo "host: $what: ok"
    else
        echo "host: $what: FAILED"
        failed=1
    fi
}
sum() { sha256sum | cut -c1-64; }
same() { [ -n "$1" ] && [ "$1" = "$2" ]; }
load() { command modprobe -d "$LAB_KERNEL_ROOT" "$1" || echo "host: cannot load $1"; }
no_fault() { ! dmesg | grep -i "DMAR.*fault"; }
