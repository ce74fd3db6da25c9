/*
 * Saves a machine that runs in Bochs without a window, and makes resuming it
 * fast.
 *
 * Bochs can save and restore a machine, but only a button in its window
 * starts that.  This library is preloaded into Bochs and starts it between
 * two instructions, when no timer handler is running.  The request is a
 * symbolic link with the name "saving" to the folder for the saved state.
 * Afterwards the link is renamed to "saved" or "unsaved".  There are two ways:
 *
 * A Bochs with its debugger (Debian's 2.7 always has it) stops at its prompt
 * when it gets SIGINT.  This library replaces the readline(3) of the prompt:
 * it saves if there is a request, and lets the machine continue.
 *
 * A Bochs without its debugger (3.0, where the debugger is an option that
 * makes it a third slower or more) gets SIGUSR1.  Then its instruction loop
 * returns, and Bochs writes that to its log before it frees anything.  When
 * this line is written, the library saves the machine; then Bochs ends.
 *
 * All symbols of Bochs are weak, because the programs that start Bochs load
 * this library too.
 *
 * To restore a machine, Bochs copies the whole memory file to a temporary
 * file and reads the used blocks from there.  That needs a gigabyte in /tmp
 * each time.  This library gives it the saved file instead of the temporary
 * one: Bochs writes to that file only if a guest has more memory than Bochs
 * may use.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define	LOOP_ENDED	"cpu loop quit"

extern void *SIM __attribute__((weak));
extern bool save_state(void *sim, const char *folder)
    __asm__("_ZN13bx_real_sim_c10save_stateEPKc") __attribute__((weak));
extern void stop_simulation(void)
    __asm__("_Z18bx_stop_simulationv") __attribute__((weak));
int __vsnprintf_chk(char *, size_t, int, size_t, const char *, va_list);

static bool loop_ended;

static void
save_if_asked(void)
{
	bool saved;

	if (access("saving", F_OK) != 0)
		return;
	saved = &SIM != NULL && save_state != NULL &&
	    save_state(SIM, "saving");
	(void)rename("saving", saved ? "saved" : "unsaved");
}

/*
 * Sets two flags of Bochs.  The current instruction may overwrite one of
 * them; Bochs checks the other one at the next event, a moment later.
 */
static void
stop(int signal_number)
{
	(void)signal_number;
	if (access("saving", F_OK) == 0)
		stop_simulation();
}

__attribute__((constructor)) static void
begin(void)
{
	if (stop_simulation != NULL && save_state != NULL)
		(void)signal(SIGUSR1, stop);
}

char *
readline(const char *prompt)
{
	(void)prompt;
	save_if_asked();
	return (strdup("continue"));
}

/*
 * Bochs formats each line of its log with vsnprintf(), or with
 * __vsnprintf_chk() if it was built with checks of buffer sizes
 * (_FORTIFY_SOURCE), as in Debian.  It holds the lock of its log during the
 * call, and saving needs this lock too.  So this only notes the line.
 */
int
vsnprintf(char *line, size_t room, const char *format, va_list values)
{
	int (*next)(char *, size_t, const char *, va_list);

	if (strncmp(format, LOOP_ENDED, sizeof(LOOP_ENDED) - 1) == 0)
		loop_ended = true;
	next = (int (*)(char *, size_t, const char *,
	    va_list))dlsym(RTLD_NEXT, "vsnprintf");
	return (next == NULL ? -1 : next(line, room, format, values));
}

int
__vsnprintf_chk(char *line, size_t room, int flag, size_t have,
    const char *format, va_list values)
{
	(void)flag;
	return (vsnprintf(line, room < have ? room : have, format, values));
}

/*
 * Bochs has written the line and unlocks its log: now the machine can be
 * saved.
 */
int
pthread_mutex_unlock(pthread_mutex_t *mutex)
{
	static int (*next)(pthread_mutex_t *);
	int error;

	if (next == NULL)
		next = (int (*)(pthread_mutex_t *))dlsym(RTLD_NEXT,
		    "pthread_mutex_unlock");
	error = next == NULL ? EINVAL : next(mutex);
	if (loop_ended) {
		loop_ended = false;
		save_if_asked();
	}
	return (error);
}

FILE *
tmpfile64(void)
{
	FILE *memory;
	FILE *(*next)(void);

	if ((memory = fopen64("state/memory.image", "r")) != NULL)
		return (memory);
	next = (FILE *(*)(void))dlsym(RTLD_NEXT, "tmpfile64");
	return (next == NULL ? NULL : next());
}
