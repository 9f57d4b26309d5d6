/* Ways to end: the ACPI sleep and reset registers of Dormouse at port 0x600, the i8042's reset line, and two
 * that are the VMM's to report: a triple fault, and code that KVM cannot emulate. Also the power button, whose
 * status at port 0x604 is cleared by reading it. */
#include "guest.h"

enum { POWER_PORT = 0x600, EVENT_PORT = 0x604, EVENT_BUTTON = 1, SLEEP_S5 = 5 << 2 | 1 << 5, RESET = 1,
       I8042_COMMAND = 0x64, PULSE_RESET = 0xfe };

static void wait_for_end(const char *what)
{
    delay_us(1000000);
    print("%s had no effect\n", what);
}

void triple_fault(void)
{
    struct PACKED { u16 limit; u64 base; } none = { 0, 0 };
    irq_disable();
    for (;;)
        asm volatile("lidt %0; ud2" ::"m"(none));
}

void power_off(void)
{
    irq_disable();
    out8(POWER_PORT, SLEEP_S5);
    wait_for_end("poweroff");
    /* QEMU has no such register: with -no-reboot this ends it too. */
    triple_fault();
}

void power_reset(void)
{
    out8(POWER_PORT, RESET);
    wait_for_end("reset");
}

void power_reset_i8042(void)
{
    out8(I8042_COMMAND, PULSE_RESET);
    wait_for_end("reset-i8042");
}

/* Nothing backs the last megabyte of the hole below the IOAPIC. */
void jump_to_mmio(void)
{
    print("jump to mmio\n");
    ((void (*)(void))0xfeb00000)();
}

/* 1 if the button was pressed since the last call. */
int take_button(void)
{
    return in8(EVENT_PORT) & EVENT_BUTTON;
}

/* Only the interrupt ends the wait: the timer wakes the CPU, but looks at nothing. */
void cmd_button(void)
{
    u64 before = button_presses;
    button_irq_on();
    print("button ready\n");
    while (button_presses == before) {
        timer_start(10000);
        wait_irq();
    }
    print("button=pressed\n");
}
