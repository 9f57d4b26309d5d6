/* Interrupt entry: every vector pushes its number (and a zero where the CPU pushes no error code), saves the
 * registers that C may change, and calls handle_interrupt(frame). */
    .section .text, "ax"
    .code64
    .globl vector_stubs
    .balign 16
vector_stubs:
    vector = 0
    .rept 64
    .balign 16
    .if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21)
    .else
    pushq $0
    .endif
    pushq $vector
    jmp save_registers
    vector = vector + 1
    .endr

save_registers:
    push %rax
    push %rcx
    push %rdx
    push %rsi
    push %rdi
    push %r8
    push %r9
    push %r10
    push %r11
    cld
    lea 72(%rsp), %rdi
    mov %rsp, %rax
    and $-16, %rsp
    push %rax
    push %rax
    call handle_interrupt
    pop %rsp
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rdi
    pop %rsi
    pop %rdx
    pop %rcx
    pop %rax
    add $16, %rsp
    iretq
    .section .note.GNU-stack, "", @progbits
