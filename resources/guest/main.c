/* The test guest: runs the words of its command line in order, then powers off. Words it does not know are
 * ignored, so that ordinary kernel parameters may be present.
 *
 *   memmap memory=STRIDE fill=MIB verify=MIB initrd=STEP   memory as the boot protocol describes it, and its contents
 *   acpi cpuid rtc clock                          tables, CPU identity and clocks
 *   interrupts echo flood=KIB stringio fifo       LAPIC timer, IOAPIC and the serial port (echo ends at Ctrl-D)
 *   button                                        wait for the power button
 *   smp smp-work                                  start the other CPUs, once or for ever counting
 *   pci pcifuzz=COUNT wildio=COUNT seed=N         configuration space, and hostile accesses
 *   poweroff reset reset-i8042 triple jump-mmio   ways to end
 *   heartbeat=MILLISECONDS spin                   count for ever, by timer interrupt or busy (never return)
 *   ask                                           read further words from the serial port, one line each
 */
#include "guest.h"

static int clock_in_heartbeat;

void *memcpy(void *to, const void *from, u64 n)
{
    void *start = to;
    asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n)::"memory");
    return start;
}

void *memset(void *to, int value, u64 n)
{
    void *start = to;
    asm volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(value) : "memory");
    return start;
}

int memcmp(const void *a, const void *b, u64 n)
{
    const u8 *x = a, *y = b;
    for (; n; n--, x++, y++)
        if (*x != *y)
            return *x - *y;
    return 0;
}

/* True when `word` is `name` or `name=NUMBER`; a given number replaces `*value`. */
int word_value(const char *word, const char *name, u64 *value)
{
    while (*name && *word == *name)
        word++, name++;
    if (*name)
        return 0;
    if (!*word)
        return 1;
    if (*word++ != '=' || !value)
        return 0;
    u64 number = 0;
    for (; *word >= '0' && *word <= '9'; word++)
        number = number * 10 + (u64)(*word - '0');
    *value = number;
    return !*word;
}

static void heartbeat(u64 milliseconds)
{
    u64 count = 0, next = 0;
    timer_start(1000);
    for (;;) {
        wait_irq();
        if (timer_ticks < next)
            continue;
        next = timer_ticks + milliseconds;
        print("heartbeat %d", ++count);
        if (clock_in_heartbeat) {
            u32 flags = 0;
            u64 now = kvm_clock(&flags);
            print(" clock=%d flags=%x tsc=%d", now, (u64)flags, rdtsc());
        }
        if (cpu_count > 1)
            print(" ap=%d", ap_work());
        print("\n");
        if (read_char() == 'q')
            return;
    }
}

static void spin(void)
{
    for (u64 count = 1; read_char() != 'q'; count++) {
        print("spin %d\n", count);
        for (int i = 0; i < 5000; i++)
            cpu_relax();
    }
}

static void ask(void);

/* Returns 0 for an unknown word. */
static int run_word(const char *word)
{
    u64 n;
    if (word_value(word, "memmap", 0)) cmd_memmap();
    else if (n = 2, word_value(word, "memory", &n)) cmd_memory(n);
    else if (n = 16, word_value(word, "fill", &n)) cmd_fill(n);
    else if (n = 16, word_value(word, "verify", &n)) cmd_verify(n);
    else if (n = 1, word_value(word, "initrd", &n)) cmd_initrd(n);
    else if (word_value(word, "acpi", 0)) cmd_acpi();
    else if (word_value(word, "cpuid", 0)) cmd_cpuid();
    else if (word_value(word, "rtc", 0)) cmd_rtc();
    else if (word_value(word, "clock", 0)) clock_in_heartbeat = 1, cmd_clock();
    else if (word_value(word, "interrupts", 0)) cmd_interrupts();
    else if (word_value(word, "echo", 0)) cmd_echo();
    else if (n = 64, word_value(word, "flood", &n)) cmd_flood(n);
    else if (word_value(word, "stringio", 0)) cmd_string_io();
    else if (word_value(word, "fifo", 0)) cmd_fifo();
    else if (word_value(word, "button", 0)) cmd_button();
    else if (word_value(word, "smp", 0)) cmd_smp();
    else if (word_value(word, "smp-work", 0)) print("cpus=%d working\n", (u64)start_cpus(1));
    else if (word_value(word, "pci", 0)) cmd_pci();
    else if (n = 2000, word_value(word, "pcifuzz", &n)) cmd_pci_fuzz(n);
    else if (n = 5000, word_value(word, "wildio", &n)) cmd_wild_io(n);
    else if (n = 1, word_value(word, "seed", &n)) random_seed(n);
    else if (word_value(word, "poweroff", 0)) power_off();
    else if (word_value(word, "reset", 0)) power_reset();
    else if (word_value(word, "reset-i8042", 0)) power_reset_i8042();
    else if (word_value(word, "triple", 0)) triple_fault();
    else if (word_value(word, "jump-mmio", 0)) jump_to_mmio();
    else if (n = 10, word_value(word, "heartbeat", &n)) heartbeat(n);
    else if (word_value(word, "spin", 0)) spin();
    else if (word_value(word, "ask", 0)) ask();
    else return 0;
    return 1;
}

static void ask(void)
{
    static char line[128];
    for (;;) {
        print("ask>\n");
        u32 len = 0;
        for (int c = wait_char(); c != '\n' && c != '\r'; c = wait_char())
            if (len < sizeof line - 1)
                line[len++] = (char)c;
        line[len] = 0;
        if (len && !run_word(line))
            print("unknown word: %s\n", line);
    }
}

void guest_main(int protocol, u64 boot_info)
{
    static char word[sizeof command_line];
    read_boot_info(protocol, boot_info);
    if (!command_line[0])
        power_off();
    load_idt();
    for (const char *p = command_line; *p;) {
        u32 len = 0;
        while (*p == ' ')
            p++;
        while (*p && *p != ' ')
            word[len++] = *p++;
        word[len] = 0;
        if (len)
            run_word(word);
    }
    power_off();
}
