# How the scripts that run in the lab's host find the devices behind its root ports, before each of them.
devices=/sys/bus/pci/devices
# named ID: the function with this vendor and device that is behind a root port.
named() {
    for device in "$devices"/*; do
        case $(basename "$device") in
        0000:00:*) ;;
        *) [ "$(cat "$device/vendor" "$device/device" | xargs)" = "$1" ] && basename "$device" ;;
        esac
    done
}
