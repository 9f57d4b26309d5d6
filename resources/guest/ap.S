/* Start of an application processor: real mode at the page named by the SIPI vector, where start_cpus() has
 * copied it, to long mode on the shared page tables, a stack of its own, and ap_main(ticket). */
#define AP_PAGE 0x8000
#define AP_STACK_SIZE 1024

    .section .rodata
    .code16
    .globl ap_start, ap_start_end
ap_start:
    cli
    xor %ax, %ax
    mov %ax, %ds
    lgdtl AP_PAGE + (ap_gdt_pointer - ap_start)
    mov $0x11, %eax
    mov %eax, %cr0
    ljmpl $0x18, $AP_PAGE + (ap_protected - ap_start)

    .code32
ap_protected:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $0x20, %eax
    mov %eax, %cr4
    mov $identity_pml4, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx
    rdmsr
    or $0x100, %eax
    wrmsr
    mov $0x80000033, %eax
    mov %eax, %cr0
    ljmp $8, $ap_long_mode

    .balign 8
ap_gdt_pointer:
    .word 31
    .long gdt
ap_start_end:

    .section .text, "ax"
    .code64
ap_long_mode:
    mov $1, %edi
    lock xaddl %edi, ap_tickets
    mov %edi, %eax
    inc %eax
    imul $AP_STACK_SIZE, %eax, %eax
    lea ap_stacks(%rax), %rsp
    xor %ebp, %ebp
    call ap_main
1:  cli
    hlt
    jmp 1b

    .section .bss
    .balign 16
    .globl ap_tickets
ap_tickets: .skip 16
ap_stacks:  .skip AP_STACK_SIZE * 256
    .section .note.GNU-stack, "", @progbits
