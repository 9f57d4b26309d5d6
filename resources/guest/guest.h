/* Shared declarations of the test guest: port and register access, and what each file offers the others. */
#ifndef GUEST_H
#define GUEST_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

#define MAX_CPUS 1024
#define PACKED __attribute__((packed))

static inline void out8(u16 port, u8 v) { asm volatile("outb %0, %1" ::"a"(v), "Nd"(port)); }
static inline void out16(u16 port, u16 v) { asm volatile("outw %0, %1" ::"a"(v), "Nd"(port)); }
static inline void out32(u16 port, u32 v) { asm volatile("outl %0, %1" ::"a"(v), "Nd"(port)); }
static inline u8 in8(u16 port) { u8 v; asm volatile("inb %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline u16 in16(u16 port) { u16 v; asm volatile("inw %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline u32 in32(u16 port) { u32 v; asm volatile("inl %1, %0" : "=a"(v) : "Nd"(port)); return v; }

static inline u64 rdtsc(void) { u32 lo, hi; asm volatile("rdtsc" : "=a"(lo), "=d"(hi)); return (u64)hi << 32 | lo; }
static inline u64 rdmsr(u32 msr) { u32 lo, hi; asm volatile("rdmsr" : "=a"(lo), "=d"(hi) : "c"(msr)); return (u64)hi << 32 | lo; }
static inline void wrmsr(u32 msr, u64 v) { asm volatile("wrmsr" ::"c"(msr), "a"((u32)v), "d"((u32)(v >> 32)) : "memory"); }
static inline void cpu_relax(void) { asm volatile("pause" ::: "memory"); }
static inline void irq_enable(void) { asm volatile("sti" ::: "memory"); }
static inline void irq_disable(void) { asm volatile("cli" ::: "memory"); }
/* STI blocks interrupts for one more instruction, so no wake-up is lost between the two. */
static inline void wait_irq(void) { asm volatile("sti; hlt; cli" ::: "memory"); }
static inline void cpuid(u32 leaf, u32 sub, u32 r[4])
{
    asm volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(sub));
}
static inline void *at(u64 address) { return (void *)address; }

/* serial.c */
void put_char(char c);
void print(const char *format, ...);
int read_char(void);
int wait_char(void);
void serial_irq(void);
void serial_reset(void);
void cmd_echo(void);
void cmd_flood(u64 kib);
void cmd_string_io(void);
void cmd_fifo(void);
int serial_interrupt_test(void);

/* boot.c */
struct range { u64 start, size; u32 type; };
extern struct range memory_map[64];
extern u32 memory_map_len;
extern char command_line[4096];
extern u64 boot_rsdp, initrd_start, initrd_size;
void read_boot_info(int protocol, u64 address);
u64 ram_total(void);
u64 low_ram_end(void);
void cmd_memmap(void);
void cmd_initrd(u64 step);

/* memory.c */
void *map_physical(u64 address);
void cmd_memory(u64 stride_mib);
void cmd_fill(u64 mib);
void cmd_verify(u64 mib);

/* acpi.c */
extern u32 cpu_apic_ids[MAX_CPUS], cpu_count;
extern u64 ecam_base;
int acpi_walk(void);
void cmd_acpi(void);

/* interrupt.c */
extern volatile u64 timer_ticks, serial_irqs, button_presses;
void interrupts_init(void);
void load_idt(void);
void apic_enable(void);
u32 apic_id(void);
void apic_send(u32 destination, u32 command);
void timer_start(u32 microseconds);
void button_irq_on(void);
void cmd_interrupts(void);

/* smp.c */
u32 start_cpus(int keep_working);
u64 ap_work(void);
void cmd_smp(void);

/* pci.c */
u32 pci_functions(void);
void cmd_pci(void);
void cmd_pci_fuzz(u64 count);

/* power.c */
void power_off(void) __attribute__((noreturn));
void power_reset(void);
void power_reset_i8042(void);
void triple_fault(void) __attribute__((noreturn));
void jump_to_mmio(void);
int take_button(void);
void cmd_button(void);

/* wild.c */
u32 random32(void);
void random_seed(u64 seed);
void cmd_wild_io(u64 count);

/* clock.c */
u64 kvm_clock(u32 *flags);
void cmd_clock(void);
void cmd_rtc(void);
void cmd_cpuid(void);
void delay_us(u64 microseconds);

/* main.c */
int word_value(const char *word, const char *name, u64 *value);

void *memcpy(void *to, const void *from, u64 n);
void *memset(void *to, int value, u64 n);
int memcmp(const void *a, const void *b, u64 n);

#endif
