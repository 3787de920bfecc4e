# Random writes, each read back and compared, before the scripts of guests that have fio.
verified() { # verified FILE
    fio --name=verify --filename="$1" --size=16M --rw=randrw --bs=4k --direct=1 --ioengine=libaio --iodepth=16 \
        --verify=crc32c --verify_fatal=1 --thread --eta=never --output=/tmp/fio.log
    status=$?
    if [ $status = 0 ] && grep -q 'err= 0' /tmp/fio.log; then
        echo "guest: fio: ok"
    else
        echo "guest: fio: FAILED, status $status"
        cat /tmp/fio.log
    fi
}
