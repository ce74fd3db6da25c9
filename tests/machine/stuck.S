/*
 * A boot sector that does not get far, as STUCK says: 1 resets with a triple fault, 2 says on the
 * screen what a loader without a kernel says, 3 asks for a login there.
 */
	.code16
	.globl _start
_start:
	cli
	xor	%ax, %ax
	mov	%ax, %ds
	mov	%ax, %ss
	mov	$0x7c00, %sp
#if STUCK == 1
	lidt	nothing
	int3
nothing:
	.word	0
	.long	0
#else
	mov	$words, %si
next:
	lodsb
	test	%al, %al
	jz	stay
	mov	$0x0e, %ah
	mov	$7, %bx
	int	$0x10
	jmp	next
stay:
	hlt
	jmp	stay
words:
#if STUCK == 2
	.ascii	"can't load 'kernel'\r\n\r\n"
	.ascii	"Type '?' for a list of commands, 'help' for more detailed help.\r\n"
	.asciz	"OK "
#else
	.asciz	"FreeBSD/amd64 (Amnesiac) (ttyv0)\r\n\r\nlogin: "
#endif
#endif
	.org	510
	.word	0xaa55
