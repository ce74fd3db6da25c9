/* A boot sector that greets on COM1, echoes what it hears, writes to the disk at `w` and switches
   the machine off at `q`: all that the tests of the machines need of a guest.  While it waits it
   leaves the processor to others: many of these tests run on a single one. */
	.code16
	.global _start
_start:
	xor	%ax, %ax
	mov	%ax, %ds
	mov	%ax, %es
	cli
	mov	%ax, %ss
	mov	$0x7c00, %sp
	movw	$uart, 0x0c * 4		/* IRQ 4 is the serial line's */
	mov	%ax, 0x0c * 4 + 2
	in	$0x21, %al
	and	$0xef, %al
	out	%al, $0x21
	mov	$0x3fb, %dx		/* LCR: 8 bits; Bochs honours the 5 it starts with */
	mov	$0x03, %al
	out	%al, %dx
	mov	$0x3f9, %dx		/* IER: an interrupt for each byte that comes */
	mov	$0x01, %al
	out	%al, %dx
	mov	$0x3fc, %dx		/* MCR: OUT2 lets it through */
	mov	$0x0b, %al
	out	%al, %dx
	mov	$hello, %si
greet:	lodsb
	test	%al, %al
	jz	listen
	call	put
	jmp	greet
wait:	sti				/* interrupts come only after hlt has begun */
	hlt
listen:	cli
	mov	$0x3fd, %dx		/* LSR: is there a byte? */
	in	%dx, %al
	test	$1, %al
	jz	wait
	sti
	mov	$0x3f8, %dx
	in	%dx, %al
	cmp	$'q', %al
	je	off
	cmp	$'w', %al
	jne	echo
	mov	$0x0301, %ax		/* write one sector, the third, from memory at 0x7c00 */
	mov	$0x7c00, %bx
	mov	$0x0003, %cx
	mov	$0x0080, %dx
	int	$0x13
	mov	$'E', %al
	jc	echo
	mov	$'W', %al
echo:	call	put
	jmp	listen
off:	mov	$word, %si
	mov	$0x8900, %dx		/* Bochs: the word Shutdown, a byte at a time */
spell:	lodsb
	test	%al, %al
	jz	acpi
	out	%al, %dx
	jmp	spell
acpi:	mov	$0x2000, %ax		/* QEMU's q35: S5 in PM1a_CNT */
	mov	$0x604, %dx
	out	%ax, %dx
halt:	hlt
	jmp	halt
uart:	push	%ax
	mov	$0x20, %al
	out	%al, $0x20
	pop	%ax
	iret
put:	mov	%al, %ah
full:	mov	$0x3fd, %dx
	in	%dx, %al
	test	$0x20, %al
	jz	full
	mov	%ah, %al
	mov	$0x3f8, %dx
	out	%al, %dx
	ret
hello:	.asciz	"hello from the first sector\r\n> "
word:	.asciz	"Shutdown"
	.org	510
	.word	0xaa55
