# Runs in the lab's host: two VMMs, whose guests share pages and an event channel. The second guest is told on its command line what the first
# grants.
#
# VMM    reference-vmm and its arguments, but for the kernel's command line
# WORK   a folder for what is not kept
set -u
mkdir -p "$WORK"
words="console=ttyS0 quiet panic=-1"
first=/job/first.log
timeout -k 5 200 sh -c "exec $VMM --xen-peer $WORK/peer.sock --cmdline '$words'" </dev/null >$first 2>&1 &
granter=$!
for _ in $(seq 1000); do
    # The whole line: of the last number there may be a part yet.
    granted=$(sed -n 's/^peer: granted \([0-9]*\) \([0-9]*\) \([0-9][0-9]*\)[^0-9].*/\1,\2,\3/p' $first)
    [ -n "$granted" ] && break
    sleep 0.1
done
check "the first guest grants" [ -n "$granted" ]
timeout -k 5 150 sh -c "exec $VMM --xen-peer $WORK/peer.sock --cmdline '$words lab.map=$granted'" </dev/null 2>&1
check "the second VMM ended" [ $? = 0 ]
wait $granter
check "the first VMM ended" [ $? = 0 ]
cat $first
check "nothing is left of where they met" [ ! -e "$WORK/peer.sock" ]
exit $failed
