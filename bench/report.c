#define _GNU_SOURCE
#include "report.h"

#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

typedef int mallctl_t(const char *, void *, size_t *, void *, size_t);

/* The string or bool at name as JSON, null where this malloc has none. */
static void
mallctl_print(
    const char *key, mallctl_t *mallctl, const char *name, bool is_string) {
	const char *string = NULL;
	bool        boolean = false;
	void       *value = is_string ? (void *)&string : (void *)&boolean;
	size_t      nbytes = is_string ? sizeof(string) : sizeof(boolean);
	if (mallctl == NULL || mallctl(name, value, &nbytes, NULL, 0) != 0) {
		printf(", \"%s\": null", key);
	} else if (is_string) {
		printf(", \"%s\": \"%s\"", key, string);
	} else {
		printf(", \"%s\": %s", key, boolean ? "true" : "false");
	}
}

void
report_malloc(void) {
	Dl_info    info;
	mallctl_t *mallctl = (mallctl_t *)dlsym(RTLD_DEFAULT, "mallctl");
	if (dladdr(dlsym(RTLD_DEFAULT, "malloc"), &info) == 0) {
		abort();
	}
	printf("\"library\": \"%s\"", info.dli_fname);
	mallctl_print("version", mallctl, "version", true);
	mallctl_print("config_mesh", mallctl, "config.mesh", false);
	mallctl_print("opt_mesh", mallctl, "opt.mesh", false);
	mallctl_print("mesh_off", mallctl, "stats.mesh.off", true);
}

void
report_phase(const char *name, const char *members, ...) {
	va_list ap;
	printf("{\"phase\": \"%s\", ", name);
	va_start(ap, members);
	vprintf(members, ap);
	va_end(ap);
	printf(", ");
	report_malloc();
	puts("}");
	fflush(stdout);
	getchar();
}
