/* IDT, local APIC (x2APIC where the CPU has it) with its timer, and the IOAPIC entry of the serial port.
 * Vector 32 is the timer, 33 is IRQ 4, 34 the spurious vector, 35 the power button's GSI 5; anything below is an
 * exception, which is reported and ends the machine. */
#include "guest.h"

enum { TIMER_VECTOR = 32, SERIAL_VECTOR = 33, SPURIOUS_VECTOR = 34, BUTTON_VECTOR = 35, SERIAL_IRQ = 4,
       BUTTON_GSI = 5 };
enum { APIC_ID = 0x20, APIC_EOI = 0xb0, APIC_SPURIOUS = 0xf0, APIC_ICR = 0x300, APIC_TIMER = 0x320, APIC_LINT0 = 0x350,
       APIC_INITIAL = 0x380, APIC_DIVIDE = 0x3e0 };
enum { MSR_APIC_BASE = 0x1b, MSR_X2APIC = 0x800 };
#define IOAPIC 0xfec00000UL
#define LAPIC 0xfee00000UL

struct PACKED gate { u16 offset_low, selector; u8 ist, type; u16 offset_mid; u32 offset_high, reserved; };
struct PACKED frame { u64 vector, error, rip, cs, rflags, rsp, ss; };

volatile u64 timer_ticks, serial_irqs, button_presses;
static volatile u64 spurious;
static struct gate idt[64];
static int x2apic, initialized;
extern u8 vector_stubs[];

static void apic_write(u32 reg, u32 value)
{
    if (x2apic)
        wrmsr(MSR_X2APIC + reg / 16, value);
    else
        *(volatile u32 *)(LAPIC + reg) = value;
}

u32 apic_id(void)
{
    return x2apic ? (u32)rdmsr(MSR_X2APIC + APIC_ID / 16) : *(volatile u32 *)(LAPIC + APIC_ID) >> 24;
}

void apic_send(u32 destination, u32 command)
{
    if (x2apic) {
        wrmsr(MSR_X2APIC + APIC_ICR / 16, (u64)destination << 32 | command);
        return;
    }
    *(volatile u32 *)(LAPIC + APIC_ICR + 0x10) = destination << 24;
    *(volatile u32 *)(LAPIC + APIC_ICR) = command;
}

static void ioapic_write(u32 reg, u32 value)
{
    *(volatile u32 *)IOAPIC = reg;
    *(volatile u32 *)(IOAPIC + 0x10) = value;
}

void handle_interrupt(const struct frame *frame)
{
    if (frame->vector == TIMER_VECTOR) {
        timer_ticks++;
    } else if (frame->vector == SERIAL_VECTOR) {
        serial_irq();
    } else if (frame->vector == BUTTON_VECTOR) {
        button_presses += (u64)take_button();
    } else if (frame->vector == SPURIOUS_VECTOR) {
        spurious++;
        return;
    } else {
        u64 cr2;
        asm volatile("mov %%cr2, %0" : "=r"(cr2));
        print("\nEXCEPTION vector=%d error=0x%x rip=0x%x cr2=0x%x\n", frame->vector, frame->error, frame->rip, cr2);
        power_off();
    }
    apic_write(APIC_EOI, 0);
}

void load_idt(void)
{
    struct PACKED { u16 limit; u64 base; } pointer = { sizeof idt - 1, (u64)idt };
    for (u64 i = 0; i < sizeof idt / sizeof *idt; i++) {
        u64 stub = (u64)vector_stubs + i * 16;
        idt[i] = (struct gate){ (u16)stub, 8, 0, 0x8e, (u16)(stub >> 16), (u32)(stub >> 32), 0 };
    }
    asm volatile("lidt %0" ::"m"(pointer));
}

/* Also called on each AP. */
void apic_enable(void)
{
    u32 r[4];
    cpuid(1, 0, r);
    u64 base = rdmsr(MSR_APIC_BASE) | 1 << 11;
    if (r[2] >> 21 & 1) {
        /* x2APIC mode is entered from xAPIC mode only. */
        wrmsr(MSR_APIC_BASE, base);
        wrmsr(MSR_APIC_BASE, base | 1 << 10);
        x2apic = 1;
    }
    apic_write(APIC_SPURIOUS, 0x100 | SPURIOUS_VECTOR);
}

void interrupts_init(void)
{
    if (initialized)
        return;
    initialized = 1;
    out8(0x21, 0xff);
    out8(0xa1, 0xff);
    apic_enable();
    apic_write(APIC_LINT0, 1 << 16);
    ioapic_write(0x10 + SERIAL_IRQ * 2 + 1, apic_id() << 24);
    ioapic_write(0x10 + SERIAL_IRQ * 2, SERIAL_VECTOR);
}

void button_irq_on(void)
{
    interrupts_init();
    ioapic_write(0x10 + BUTTON_GSI * 2 + 1, apic_id() << 24);
    ioapic_write(0x10 + BUTTON_GSI * 2, BUTTON_VECTOR);
}

/* Periodic; KVM and QEMU both run the timer's clock at 1 GHz. */
void timer_start(u32 microseconds)
{
    interrupts_init();
    apic_write(APIC_DIVIDE, 0xb);
    apic_write(APIC_TIMER, 1 << 17 | TIMER_VECTOR);
    apic_write(APIC_INITIAL, microseconds * 1000);
}

static void timer_stop(void)
{
    apic_write(APIC_INITIAL, 0);
    apic_write(APIC_TIMER, 1 << 16);
}

void cmd_interrupts(void)
{
    timer_start(1000);
    u64 start = timer_ticks, tsc = rdtsc();
    while (timer_ticks < start + 20)
        wait_irq();
    print("timer=ok ticks=%d tsc-per-tick=%d x2apic=%d\n", timer_ticks - start, (rdtsc() - tsc) / 20, (u64)x2apic);
    int result = serial_interrupt_test();
    timer_stop();
    print("serial-irq thre=%s rx=%s count=%d\n", result & 1 ? "ok" : "none", result & 2 ? "ok" : "none", serial_irqs);
}
