# about: the prompt of `cargo xtask lab shell`
# memory: 4096
# files: vmlinux
# modules: nvme
. /lab/lib.sh
cat <<'END'

  You are root in L1: stock Linux with real KVM and real VFIO, under emulation.
    dormouse             the binary                   /lab/vmlinuz /lab/vmlinux /lab/l2.cpio   a guest
    vm_config NAME CPUS MIB KERNEL WORDS [DEVICES]    writes /tmp/lab/NAME.json     (lab=obey obeys words on the console)
    run_vm NAME; expect NAME PATTERN SECONDS; ctl NAME info
    mtty_create UUID; vfio_bind "$(pci_with_class 0x0108)"
  Ended by: poweroff -f, or Ctrl-A X.

END
vm_config vm 1 512 vmlinuz lab=obey
export ENV=/lab/lib.sh LAB_SHELL=1
setsid sh -c 'exec sh -i < /dev/ttyS0 > /dev/ttyS0 2>&1' || sh -i
poweroff -f
