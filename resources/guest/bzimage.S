/* The real-mode part of a bzImage: nothing but the setup header of Documentation/arch/x86/boot.rst, which is
 * all that a 64-bit boot loader reads. The flat guest image follows after one setup sector. */
    .code16
    .section .text, "ax"
    .globl _start
_start:
    .org 0x1f1
    .byte 1                         /* setup_sects */
    .word 0                         /* root_flags */
    .long (PAYLOAD_SIZE + 15) / 16  /* syssize */
    .word 0                         /* ram_size */
    .word 0                         /* vid_mode */
    .word 0                         /* root_dev */
    .word 0xaa55                    /* boot_flag */
    .byte 0xeb, header_end - 1f     /* jump */
1:  .ascii "HdrS"
    .word 0x020f                    /* version */
    .long 0                         /* realmode_swtch */
    .word 0                         /* start_sys_seg */
    .word 0                         /* kernel_version */
    .byte 0                         /* type_of_loader */
    .byte 1                         /* loadflags: LOADED_HIGH */
    .word 0                         /* setup_move_size */
    .long 0x100000                  /* code32_start */
    .long 0                         /* ramdisk_image */
    .long 0                         /* ramdisk_size */
    .long 0                         /* bootsect_kludge */
    .word 0                         /* heap_end_ptr */
    .byte 0                         /* ext_loader_ver */
    .byte 0                         /* ext_loader_type */
    .long 0                         /* cmd_line_ptr */
    .long 0x7fffffff                /* initrd_addr_max */
    .long 0x1000                    /* kernel_alignment */
    .byte 0                         /* relocatable_kernel */
    .byte 12                        /* min_alignment */
    .word 1                         /* xloadflags: XLF_KERNEL_64 */
    .long 2047                      /* cmdline_size */
    .long 0                         /* hardware_subarch */
    .quad 0                         /* hardware_subarch_data */
    .long 0                         /* payload_offset */
    .long 0                         /* payload_length */
    .quad 0                         /* setup_data */
    .quad 0x100000                  /* pref_address */
    .long MEMORY_SIZE               /* init_size */
    .long 0                         /* handover_offset */
    .long 0                         /* kernel_info_offset */
header_end:
    .org 1024
    .section .note.GNU-stack, "", @progbits
