/* SPDX-License-Identifier: MIT */
/*
 * A file inside the binary: const unsigned char NAME[], NAME_end[]. The build
 * defines NAME, NAME_END and PATH.
 */
	.section .rodata
	.balign 64
	.global NAME, NAME_END
NAME:
	.incbin PATH
NAME_END:
	.byte 0
	.section .note.GNU-stack, "", %progbits
