/* A boot sector that greets on COM1, echoes what it hears, writes to the disk at `w` and switches
   the machine off at `q`: all that the tests of the machines need of a guest. */
	.code16
	.global _start
_start:
	xor	%ax, %ax
	mov	%ax, %ds
	mov	%ax, %es
	mov	%ax, %ss
	mov	$0x7c00, %sp
	mov	$0x3fb, %dx		/* LCR: 8 bits; Bochs honours the 5 it starts with */
	mov	$0x03, %al
	out	%al, %dx
	mov	$hello, %si
greet:	lodsb
	test	%al, %al
	jz	listen
	call	put
	jmp	greet
listen:	mov	$0x3fd, %dx		/* LSR: is there a byte? */
	in	%dx, %al
	test	$1, %al
	jz	listen
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
