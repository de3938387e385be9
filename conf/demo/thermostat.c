/* The demo's application: reads a set point, says what it would do. */
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
	const char *path = argc > 1 ? argv[1] : "/srv/app/setpoint";
	FILE *file = fopen(path, "r");
	double degrees;

	if (!file) {
		perror(path);
		return EXIT_FAILURE;
	}
	if (fscanf(file, "%lf", &degrees) != 1) {
		fprintf(stderr, "%s: wanted a number of degrees\n", path);
		fclose(file);
		return EXIT_FAILURE;
	}
	fclose(file);
	printf("thermostat: holding %.1f degrees\n", degrees);
	return EXIT_SUCCESS;
}
