/*
 * Reads the code that has made a system call, for its number: that is not in the frame of
 * a signal on x86-64, but most code that makes a call, or has syscall(3) make it, loads
 * it just before.
 *
 * Called by mesh_call in the handler of a signal: uses the stack and system calls only.
 */

#include "jemalloc/internal/jemalloc_preamble.h"
#include "jemalloc/internal/jemalloc_internal_includes.h"

#include "jemalloc/internal/mesh_code.h"
#include "jemalloc/internal/mesh_task.h"

#ifdef __x86_64__

/*
 * The code before a program counter, which may be at the beginning of a page.
 * Returns true if it cannot be read.
 */
static bool
code_read(unsigned char *code, uintptr_t pc, size_t size) {
	uintptr_t first = pc - size;
	if ((first & ~PAGE_MASK) == (pc & ~PAGE_MASK)) {
		memcpy(code, (const void *)first, size);
		return false;
	}
	return mesh_tasks_peek(code, (const void *)first, size);
}

/* Registers, as instructions number them. */
#	define REG_NR_RAX 0
#	define REG_NR_RDI 7

/*
 * Whether an instruction of two bytes is one of those; says whether the result goes to a
 * register that is none of vectors, and to what the second operand names.
 */
static bool
code_pair_known(unsigned op, bool *general, bool *to_rm) {
	switch (op) {
	case 0x10 ... 0x17: /* Of vectors: mov of all kinds, */
	case 0x28 ... 0x2b:
	case 0x2e ... 0x2f: /* comparisons, */
	case 0x51 ... 0x6f: /* arithmetic, conversions, and, or, xor. */
	case 0x7f:
	case 0xd4:
	case 0xd6:
	case 0xdb:
	case 0xef:
		*general = false;
		return true;
	case 0x7e: /* movd, movq */
		*to_rm = true;
		return true;
	case 0x2c ... 0x2d: /* Conversions from vectors; cmov, imul, movzx, movsx. */
	case 0x40 ... 0x50:
	case 0xaf:
	case 0xb6 ... 0xb7:
	case 0xbe ... 0xbf:
		return true;
	default:
		return false;
	}
}

/*
 * The length of an instruction that computes or loads another register than that, or
 * writes to memory, as are made before a call; 0 if it is none of these.
 */
static size_t
code_load_length(const unsigned char *code, size_t size, unsigned reg) {
	size_t   at = 0;
	unsigned rex = 0;
	bool     prefixed = code[at] == 0x66 || code[at] == 0xf2
	    || code[at] == 0xf3;
	at += prefixed;
	if (at < size && (code[at] & 0xf0) == 0x40) {
		rex = code[at++];
	}
	if (at + 2 > size) {
		return 0;
	}
	unsigned op = code[at++];
	if (prefixed && op != 0x0f) {
		return 0;
	}
	/* Where the result goes; immediate bytes. */
	bool   general = true;
	bool   to_rm = false;
	size_t immediate = 0;
	switch (op) {
	case 0x50 ... 0x57: /* push */
		return at;
	case 0x6a: /* push $imm8 */
		return at + 1;
	case 0xb8 ... 0xbf: /* mov $imm32, %reg */
		return (rex & 8) == 0 && ((op & 7) | (rex & 1) << 3) != reg
		    ? at + 4
		    : 0;
	case 0x01: /* add, or, and, sub, xor, mov of a register */
	case 0x09:
	case 0x21:
	case 0x29:
	case 0x31:
	case 0x89:
		to_rm = true;
		break;
	case 0x03: /* The same to one; movslq, lea. */
	case 0x0b:
	case 0x23:
	case 0x2b:
	case 0x33:
	case 0x63:
	case 0x8b:
	case 0x8d:
		break;
	case 0xc4: /* VEX: the bits of a prefix, inverted, and what it is a prefix of. */
		rex = (unsigned)~code[at] >> 5 & 7;
		if ((code[at] & 0x1f) != 1) {
			return 0;
		}
		at++;
		JEMALLOC_FALLTHROUGH;
	case 0xc5: /* One byte less, and just one of the bits. */
		rex = op == 0xc5 ? (unsigned)~code[at] >> 5 & 4 : rex;
		at++;
		JEMALLOC_FALLTHROUGH;
	case 0x0f: /* Of two bytes. */
		if (at + 2 > size) {
			return 0;
		}
		op = code[at++];
		if (!code_pair_known(op, &general, &to_rm)) {
			return 0;
		}
		break;
	case 0x69: /* imul */
		immediate = 4;
		break;
	case 0x6b:
		immediate = 1;
		break;
	case 0x81: /* add, or, and, sub, xor, mov of a constant */
	case 0xc7:
		to_rm = true;
		immediate = 4;
		break;
	case 0x83: /* The same of a small one; shifts. */
	case 0xc1:
		to_rm = true;
		immediate = 1;
		break;
	default:
		return 0;
	}
	unsigned modrm = code[at++];
	unsigned mod = modrm >> 6;
	unsigned base = modrm & 7;
	unsigned to = to_rm ? base | (rex & 1) << 3
	                    : (modrm >> 3 & 7) | (rex & 4) << 1;
	if (general && (!to_rm || mod == 3) && to == reg) {
		return 0;
	}
	if (mod != 3 && base == 4) {
		base = code[at++] & 7;
	}
	size_t displacement = mod == 1            ? 1
	    : mod == 2 || (mod == 0 && base == 5) ? 4
	                                          : 0;
	return at + displacement + immediate;
}

/* Whether from there to the end all is done to other registers than that. */
static bool
code_only_loads(
    const unsigned char *code, size_t at, size_t size, unsigned reg) {
	size_t length = 1;
	while (at < size && length != 0) {
		length = code_load_length(&code[at], size - at, reg);
		at += length;
	}
	return at == size;
}

/* The number that is loaded into a register last; -1 if that cannot be had. */
static long
code_loaded(const unsigned char *code, size_t size, unsigned reg) {
	/* mov $number, %reg; then other registers */
	for (size_t first = size - 5; first < size; first--) {
		if (code[first] == 0xb8 + reg
		    && code_only_loads(code, first + 5, size, reg)) {
			int32_t nr;
			memcpy(&nr, &code[first + 1], sizeof(nr));
			return nr;
		}
	}
	return -1;
}

#	define CODE_BYTES 96

/*
 * The number that the caller of syscall(3) gave it, which made the call: it passes
 * its arguments on and leaves the stack as it is.
 */
static long
code_number_given(const unsigned char *code, size_t size, uintptr_t sp) {
	/* mov %rdi, %rax */
	static const unsigned char moved[] = {0x48, 0x89, 0xf8};
	bool                       found = false;
	for (size_t at = size; !found && at-- > sizeof(moved);) {
		found = memcmp(&code[at - sizeof(moved)], moved, sizeof(moved))
		        == 0
		    && code_only_loads(code, at, size, REG_NR_RAX);
	}
	unsigned char caller[CODE_BYTES];
	if (!found
	    || code_read(caller, *(const uintptr_t *)sp, sizeof(caller))) {
		return -1;
	}
	/* call function, or call *function(%rip) */
	size = sizeof(caller) - 5;
	if (caller[size] != 0xe8) {
		size--;
		if (caller[size] != 0xff || caller[size + 1] != 0x15) {
			return -1;
		}
	}
	return code_loaded(caller, size, REG_NR_RDI);
}

long
mesh_code_number(uintptr_t pc, uintptr_t sp) {
	unsigned char code[CODE_BYTES];
	size_t        size = sizeof(code) - MESH_CODE_CALL_BYTES;
	if (code_read(code, pc, sizeof(code))) {
		return -1;
	}
	/* xor %eax, %eax */
	if (code[size - 2] == 0x31 && code[size - 1] == 0xc0) {
		return 0;
	}
	long nr = code_loaded(code, size, REG_NR_RAX);
	return nr != -1 ? nr : code_number_given(code, size, sp);
}

bool
mesh_code_is_call(uintptr_t pc) {
	unsigned char code[MESH_CODE_CALL_BYTES];
	return !code_read(code, pc, sizeof(code)) && code[0] == 0x0f
	    && code[1] == 0x05;
}

#endif /* __x86_64__ */
