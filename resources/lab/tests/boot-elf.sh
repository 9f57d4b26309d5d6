# about: the ELF vmlinux, by its PVH entry
# memory: 2560
# timeout: 150
# files: vmlinux
. /lab/lib.sh
boot_cycle 2 512 vmlinux
pass
