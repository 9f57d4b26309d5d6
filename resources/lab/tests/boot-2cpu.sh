# about: stock kernel, 2 vCPUs: machine as configured, reboot in the process, power-off, exit 0
# memory: 2048
# timeout: 150
. /lab/lib.sh
boot_cycle 2 512 vmlinuz
pass
