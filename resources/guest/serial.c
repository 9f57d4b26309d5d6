/* The 16550 at COM1: polled output with a bounded wait, number formatting, input, and its interrupts. */
#include "guest.h"

enum { COM1 = 0x3f8, IER = COM1 + 1, IIR = COM1 + 2, FCR = COM1 + 2, LCR = COM1 + 3, MCR = COM1 + 4, LSR = COM1 + 5 };
enum { IER_RX = 1, IER_THRE = 2, MCR_IRQ_ON = 0x0b, MCR_LOOP = 0x10, LSR_DATA = 1, LSR_THRE = 0x20 };

static volatile u8 received[256];
static volatile u8 received_head, received_tail;
static volatile u64 thre_irqs;

void put_char(char c)
{
    for (int i = 0; i < 100000 && !(in8(LSR) & LSR_THRE); i++)
        cpu_relax();
    out8(COM1, (u8)c);
}

static void put_number(u64 value, u64 base)
{
    char digits[20];
    int n = 0;
    do
        digits[n++] = "0123456789abcdef"[value % base];
    while (value /= base);
    while (n)
        put_char(digits[--n]);
}

/* %d decimal and %x hexadecimal take u64, %s a string. */
void print(const char *format, ...)
{
    __builtin_va_list args;
    __builtin_va_start(args, format);
    for (; *format; format++) {
        if (*format != '%') {
            put_char(*format);
            continue;
        }
        switch (*++format) {
        case 'd': put_number(__builtin_va_arg(args, u64), 10); break;
        case 'x': put_number(__builtin_va_arg(args, u64), 16); break;
        case 's':
            for (const char *s = __builtin_va_arg(args, const char *); *s; s++)
                put_char(*s);
        }
    }
    __builtin_va_end(args);
}

static int take_received(void)
{
    return received_tail == received_head ? -1 : received[received_tail++];
}

/* Polls; -1 when nothing was received. */
int read_char(void)
{
    int c = take_received();
    return c < 0 && in8(LSR) & LSR_DATA ? in8(COM1) : c;
}

/* Sleeps between bytes: the receive interrupt wakes the CPU. */
int wait_char(void)
{
    int c;
    interrupts_init();
    out8(MCR, MCR_IRQ_ON);
    out8(IER, IER_RX);
    while ((c = read_char()) < 0) {
        /* A KVM that emulates the guest may not keep HLT in the shadow of STI: the timer bounds a lost wake-up. */
        timer_start(10000);
        wait_irq();
    }
    return c;
}

/* Called by the IRQ 4 handler. A chip may name both causes at once (0x6), as its models do, so each bit counts. */
void serial_irq(void)
{
    u8 cause = in8(IIR) & 0x0f;
    serial_irqs++;
    if (!(cause & 1) && cause & 2)
        thre_irqs++;
    /* What finds no room stays in the FIFO, where read_char() finds it. */
    while ((u8)(received_head + 1) != received_tail && in8(LSR) & LSR_DATA)
        received[received_head++] = in8(COM1);
}

/* After hostile accesses have scrambled the registers. */
void serial_reset(void)
{
    out8(LCR, 0x03);
    out8(IER, 0);
    out8(MCR, MCR_IRQ_ON);
    out8(FCR, 0x01);
    while (in8(LSR) & LSR_DATA)
        in8(COM1);
}

/* 1 if THRE, 2 if receive (by loopback) interrupts arrive, 3 both. */
int serial_interrupt_test(void)
{
    int result = 0;
    u64 deadline = timer_ticks + 2000;
    thre_irqs = 0;
    out8(MCR, MCR_IRQ_ON);
    out8(IER, IER_THRE);
    while (!thre_irqs && timer_ticks < deadline)
        wait_irq();
    result |= thre_irqs ? 1 : 0;
    out8(IER, IER_RX);
    out8(MCR, MCR_IRQ_ON | MCR_LOOP);
    out8(COM1, 'L');
    deadline = timer_ticks + 2000;
    int c;
    while ((c = take_received()) < 0 && timer_ticks < deadline)
        wait_irq();
    result |= c == 'L' ? 2 : 0;
    out8(IER, 0);
    out8(MCR, MCR_IRQ_ON);
    return result;
}

void cmd_echo(void)
{
    u64 count = 0;
    print("echo ready\n");
    for (int c; (c = wait_char()) != 4; count++)
        put_char((char)c);
    print("\necho=done bytes=%d irqs=%d\n", count, serial_irqs);
}

void cmd_flood(u64 kib)
{
    for (u64 line = 0; line < kib * 16; line++) {
        /* 64 bytes a line, numbered so that a reader sees gaps. */
        static const char fill[] = "................................................";
        char digits[15];
        u64 n = line;
        for (int i = 14; i >= 0; i--, n /= 10)
            digits[i] = (char)('0' + n % 10);
        for (int i = 0; i < 15; i++)
            out8(COM1, (u8)digits[i]);
        for (int i = 0; i < 48; i++)
            out8(COM1, (u8)fill[i]);
        out8(COM1, '\n');
    }
    print("flood=done\n");
}

/* String instructions reach a VMM as one exit with many items. */
void cmd_string_io(void)
{
    static const char text[] = "stringio by rep outsb, longer than the transmit FIFO\n";
    static u8 data[512];
    const void *from = text;
    void *to = data;
    u64 n = sizeof text - 1;
    asm volatile("rep outsb" : "+S"(from), "+c"(n) : "d"(COM1) : "memory");
    n = sizeof data;
    asm volatile("rep insb" : "+D"(to), "+c"(n) : "d"(LSR) : "memory");
    u64 wrong = 0;
    for (u32 i = 0; i < sizeof data; i++)
        wrong += data[i] == 0xff;
    /* The host bridge's vendor and device id, again and again. */
    out32(0xcf8, 0x80000000);
    n = sizeof data / 4, to = data + 0;
    asm volatile("rep insl" : "+D"(to), "+c"(n) : "d"(0xcfc) : "memory");
    u32 expected = in32(0xcfc);
    for (u32 i = 0; i < sizeof data; i += 4)
        wrong += memcmp(&data[i], &expected, 4) != 0;
    if (wrong)
        print("stringio: %d reads went elsewhere\n", wrong);
    else
        print("stringio=ok\n");
}

/* Leaves input in the chip's FIFO until the power button is pressed, and only then reads it. */
void cmd_fifo(void)
{
    char text[65];
    u32 len = 0;
    interrupts_init();
    out8(IER, 0);
    print("fifo ready\n");
    while (!(in8(LSR) & LSR_DATA))
        cpu_relax();
    print("fifo pending\n");
    while (!take_button())
        cpu_relax();
    while (len < sizeof text - 1 && in8(LSR) & LSR_DATA)
        text[len++] = (char)in8(COM1);
    text[len] = 0;
    print("fifo=%s\n", text);
}
