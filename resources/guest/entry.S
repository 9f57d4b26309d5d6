/* Entry points of the test guest: PVH (32-bit, paging off, EBX = hvm_start_info) and the Linux 64-bit boot
 * protocol (long mode, RSI = boot_params). Both print the greeting before anything else, since the time from
 * process start to that output is a benchmark figure, and meet in guest_main(protocol, address). */

#define COM1 0x3f8
#define CR0_PE_PG_NE_ET_MP 0x80000033
#define CR4_PAE 0x20
#define EFER 0xc0000080
#define EFER_LME 0x100

#ifdef WITH_PVH_NOTE
    .section .note.Xen, "a", @note
    .balign 4
    .long 4, 4, 18                  /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .long pvh_entry
#endif

    .section .text.entry, "ax"
    .code32
    .globl pvh_entry
pvh_entry:
    mov $COM1, %edx
    mov $greeting, %esi
1:  lodsb
    test %al, %al
    jz 2f
    out %al, (%dx)
    jmp 1b
2:  mov $stack_top, %esp
    call fill_identity_map
    mov $CR4_PAE, %eax
    mov %eax, %cr4
    mov $identity_pml4, %eax
    mov %eax, %cr3
    mov $EFER, %ecx
    rdmsr
    or $EFER_LME, %eax
    wrmsr
    mov $CR0_PE_PG_NE_ET_MP, %eax
    mov %eax, %cr0
    lgdt gdt_pointer
    ljmp $8, $pvh_long_mode

/* 2 MiB pages for the first 4 GiB: kept free of 1 GiB pages, which not every host offers. */
fill_identity_map:
    movl $identity_pdpt + 3, identity_pml4
    mov $identity_pdpt, %edi
    mov $identity_pd + 3, %eax
1:  mov %eax, (%edi)
    add $8, %edi
    add $4096, %eax
    cmp $identity_pdpt + 4 * 8, %edi
    jb 1b
    mov $identity_pd, %edi
    mov $0x83, %eax
2:  mov %eax, (%edi)
    add $8, %edi
    add $0x200000, %eax
    cmp $identity_pd + 4 * 4096, %edi
    jb 2b
    ret

    .org pvh_entry + 0x200
    .code64
    .globl linux64_entry
linux64_entry:
    cli
    mov %rsi, %rbx
    mov $COM1, %edx
    mov $greeting, %esi
1:  lodsb
    test %al, %al
    jz 2f
    out %al, (%dx)
    jmp 1b
2:  mov $stack_top, %rsp
    mov $identity_pdpt + 3, %eax
    mov %rax, identity_pml4
    mov $identity_pdpt, %edi
    mov $identity_pd + 3, %eax
3:  mov %rax, (%rdi)
    add $8, %edi
    add $4096, %eax
    cmp $identity_pdpt + 4 * 8, %edi
    jb 3b
    mov $identity_pd, %edi
    mov $0x83, %eax
4:  mov %rax, (%rdi)
    add $8, %edi
    add $0x200000, %eax
    cmp $identity_pd + 4 * 4096, %edi
    jb 4b
    mov $identity_pml4, %eax
    mov %rax, %cr3
    lgdt gdt_pointer
    mov $1, %edi
    jmp reload_segments

    .globl pvh_long_mode
pvh_long_mode:
    xor %edi, %edi
reload_segments:
    mov $16, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    pushq $8
    pushq $1f
    lretq
1:  mov %rbx, %rsi
    xor %ebp, %ebp
    call guest_main
2:  cli
    hlt
    jmp 2b

    .section .rodata
greeting:
    .asciz "DORMOUSE-GUEST hello\n"

    .section .data
    .balign 8
    .globl gdt
gdt:
    .quad 0
    .quad 0x00af9b000000ffff        /* 0x08: 64-bit code */
    .quad 0x00cf93000000ffff        /* 0x10: data */
    .quad 0x00cf9b000000ffff        /* 0x18: 32-bit code, for the APs */
gdt_end:
    .globl gdt_pointer
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt

    .section .bss
    .balign 4096
    .globl identity_pml4
identity_pml4: .skip 4096
identity_pdpt: .skip 4096
identity_pd:   .skip 4 * 4096
    .skip 16384
stack_top:
    .section .note.GNU-stack, "", @progbits
