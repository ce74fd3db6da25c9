/*
 * Saves a machine that runs in Bochs, without a window, and resumes it fast.
 *
 * Bochs can save and restore a machine, but all that asks it to is a button
 * in its window.  Preloaded, this asks it between two instructions, when no
 * timer's work is half done.  The request is a link named saving, to the
 * folder to be filled; it becomes saved or unsaved.  There are two ways:
 *
 * A Bochs that is in its debugger (2.7 as Debian builds it, always) stops at
 * its prompt when it gets SIGINT.  This takes the prompt's readline(3)
 * place: it saves if that was asked for, and lets the machine go on.
 *
 * A Bochs that is not in its debugger (3.0, where that is an option and
 * costs a third of the speed and more) is told to stop by SIGUSR1.  Its loop
 * over the instructions then returns, and it says so in its log before it
 * takes anything apart.  At that line the machine is saved; Bochs ends.
 *
 * All names of Bochs's are weak, since the programs that start Bochs get
 * this library too.
 *
 * To restore, Bochs copies all of the memory's file to a temporary one, and
 * reads the blocks that were in use from there; that costs a gigabyte in
 * /tmp each time.  It gets the saved file itself in its place: it writes to
 * the temporary one only when a guest has more memory than Bochs may take.
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
 * Sets two flags of Bochs's.  The instruction at hand may overwrite one of
 * them; the other is looked at again with the next event, a moment later.
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
 * What Bochs forms each line of its log with: the second where it was built
 * to check the room (_FORTIFY_SOURCE), as Debian does.  It holds its log's
 * lock meanwhile, which saving takes too.
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
 * The line is written, and the log's lock given back.
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
